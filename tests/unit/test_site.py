"""The documents as a site: links to files that are no pages lead into the repository, and the strict build passes."""

import re
import subprocess
import sys
from pathlib import Path

from claw_r1.cli.site import rewrite, slug
from tests.documents import ROOT

HOST = "https://example.org/repository"


def led(text: str, page: str = "gateway.md") -> str:
    return rewrite(text, page, ROOT, HOST)


def test_links_to_pages_stay_and_links_to_files_lead_into_the_repository() -> None:
    assert (
        led("[a](guide.md#words), [b](#errors), [c](https://x.y/z)")
        == "[a](guide.md#words), [b](#errors), [c](https://x.y/z)"
    )
    assert led("[a](../README.md#the-flow)") == f"[a]({HOST}/blob/main/README.md#the-flow)"
    assert (
        led("[a](../../examples/grpo.py) [b](agents.md)", "connect/trl.md")
        == f"[a]({HOST}/blob/main/examples/grpo.py) [b](agents.md)"
    )
    assert led("see [all](decisions)") == f"see [all]({HOST}/tree/main/docs/decisions)"


def test_links_that_lead_nowhere_stay_for_the_build_to_fail_on() -> None:
    for text in ("[a](../examples/none.py)", "[a](none.md)", "[a](../../outside)"):
        assert led(text) == text


def test_code_stays_as_it_is() -> None:
    for text in ("`[a](../README.md)`", "```text\n[a](../README.md)\n```"):
        assert led(text) == text
    assert led("```text\nx\n```\n[a](../README.md)").endswith(f"({HOST}/blob/main/README.md)")


def test_headings_have_the_anchors_that_links_use() -> None:
    assert slug("SFT, DPO and KTO", "-") == "sft-dpo-and-kto"
    assert slug("`claw keys mint`", "-") == "claw-keys-mint"
    assert slug("Annotations: reference – teacher", "-") == "annotations-reference--teacher"


def build(folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """As `make docs` does, into another folder."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


def test_the_site_is_built_and_asks_no_other_site(tmp_path: Path) -> None:
    done = build(tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    start = (tmp_path / "site/index.html").read_text("utf-8")
    assert "Start in five minutes" in start
    loaded = re.findall(
        r"<(?:script|link|img)\b[^>]*(?:src|href)=\"(https?:[^\"]*)\"",
        re.sub(r"<!--.*?-->", "", start, flags=re.DOTALL),
    )
    assert loaded == []
    page = (tmp_path / "site/connect/trl/index.html").read_text("utf-8")
    assert "/blob/main/examples/vllm_loop" not in page
    assert "/blob/main/examples/trl_rollout.py" in page
