"""Rollouts of the tiny model, sampled as a white-box agent does: two turns with a tool's result between them."""

from dataclasses import dataclass, field
from typing import Any

import torch

from claw_r1.client.rows import steps_of_row
from claw_r1.client.sync import Client
from tests.trainers.rollouts import WORDS, log_probs_of


@dataclass
class Row:
    """A prompt and a response; mask and log-probs (nats) are of the response."""

    prompt: list[int]
    response: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.response

    def add(self, ids: list[int], log_probs: list[float] | None = None) -> None:
        self.response += ids
        self.mask += [0 if log_probs is None else 1] * len(ids)
        self.log_probs += [0.0] * len(ids) if log_probs is None else log_probs


def sample(model: Any, ids: list[int], length: int, draw: torch.Generator) -> tuple[list[int], list[float]]:
    """`length` tokens behind `ids`, and their log-probs."""
    found = list(ids)
    with torch.no_grad():
        for _ in range(length):
            chances = model(input_ids=torch.tensor([found])).logits[0, -1].softmax(-1)
            chances[:2] = 0.0  # neither padding nor end
            found.append(int(torch.multinomial(chances, 1, generator=draw)))
        known = log_probs_of(model, torch.tensor([found]))[0, len(ids) :]
    return found[len(ids) :], known.tolist()


def sample_row(model: Any, draw: torch.Generator) -> Row:
    """Prompt, turn, tool's result, turn; of chance lengths."""
    lengths = torch.randint(2, 9, (4,), generator=draw).tolist()
    row = Row(torch.randint(2, WORDS, (lengths[0],), generator=draw).tolist())
    row.add(*sample(model, row.ids, lengths[1], draw))
    row.add(torch.randint(2, WORDS, (lengths[2],), generator=draw).tolist())
    row.add(*sample(model, row.ids, lengths[3], draw))
    return row


def play_group(
    client: Client, model: Any, rewards: tuple[float, ...], *, run_id: str, version: int, draw: torch.Generator
) -> dict[str, Row]:
    """A group that was sampled and told to the gateway: its rows by trajectory."""
    group = client.open_group(size=len(rewards), run_id=run_id)
    rows = {}
    for reward in rewards:
        row = sample_row(model, draw)
        with client.trajectory(prompt_uid=group.prompt_uid, run_id=run_id) as trajectory:
            trajectory.submit_steps(
                steps_of_row(row.prompt, row.response, row.mask, row.log_probs, policy_version=version)
            )
            trajectory.complete(reward=reward)
        rows[trajectory.trajectory_uid] = row
    return rows
