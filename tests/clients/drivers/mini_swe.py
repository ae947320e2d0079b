"""mini-swe-agent with its own bash tool, in a folder of its own: its last command is its report."""

import os
import tempfile

# Read at import: its folder of settings, and no greeting.
os.environ |= {"MSWEA_SILENT_STARTUP": "1", "MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors"}
os.environ["MSWEA_GLOBAL_CONFIG_DIR"] = tempfile.mkdtemp()

from minisweagent.agents.default import DefaultAgent
from minisweagent.config import get_config_from_spec
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

from tests.clients.drivers.task import MODEL, TASK, read_arguments, tell


def main() -> None:
    asked = read_arguments()
    config = get_config_from_spec("mini.yaml")
    where = {"api_base": asked.base_url, "api_key": asked.key}
    model = LitellmModel(**config["model"] | {"model_name": f"openai/{MODEL}", "model_kwargs": where})
    agent_config = {k: v for k, v in config["agent"].items() if k in ("system_template", "instance_template")}
    agent = DefaultAgent(
        model, LocalEnvironment(cwd=os.environ["MSWEA_GLOBAL_CONFIG_DIR"]), **agent_config, step_limit=4
    )
    done = agent.run(TASK)
    tell(str(done))


main()
