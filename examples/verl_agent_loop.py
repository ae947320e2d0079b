"""A verl agent loop whose rollouts are pooled: `publish_output` after the loop has run.

For verl's settings:

    actor_rollout_ref.rollout.agent.default_agent_loop=pooled_tool_agent
    actor_rollout_ref.rollout.agent.agent_loop_config_path=loops.yaml
    actor_rollout_ref.rollout.calculate_log_probs=True

where loops.yaml is

    - {name: pooled_tool_agent, _target_: examples.verl_agent_loop.PooledToolAgentLoop}
    - {name: pooled_tool_agent_val, _target_: examples.verl_agent_loop.PooledToolAgentLoop, channel: val}

verl does not tell a loop whether it validates, so the rows of the validation data name their loop: give them a column
`agent_name` with `pooled_tool_agent_val`. Without it their rollouts are of the channel `train`, as those of the training data.

CLAW_GATEWAY is the gateway's URL, CLAW_GATEWAY_RUN the run. Where verl scores rows after their loops, the trainer calls
`publish_scores`.
"""

import asyncio
import functools
import os
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

from claw_r1.client.sync import Client
from claw_r1.client.verl import publish_output


@functools.cache
def client() -> Client:
    """One for the process; threads share it."""
    return Client(os.environ["CLAW_GATEWAY"])


class PooledToolAgentLoop(ToolAgentLoop):  # type: ignore[misc]
    """verl's own loop; what it gives the trainer is in the pool too, as rollouts of `channel`."""

    def __init__(self, *args: Any, channel: str = "train", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._channel = channel

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        output = await super().run(sampling_params, **kwargs)
        run_id = os.environ.get("CLAW_GATEWAY_RUN")
        publish = functools.partial(publish_output, prompt_uid=str(kwargs["uid"]), run_id=run_id, channel=self._channel)
        await asyncio.to_thread(publish, client(), output)
        return output
