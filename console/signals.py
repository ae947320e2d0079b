"""The tokens of a step meet what is known of each: log-prob, mask, version, and what annotators and trainers sent.

Pure. Every signal has one value per token of the context (the prompt's tokens, then the response's), None where it is not
known, or it says why nobody knows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from console.trajectory import finite

Row = Mapping[str, Any]
Values = list[float | None]

TITLES: Final = {
    "log_prob": ("log-prob at sampling", "nats", "sequential"),
    "entropy": ("entropy", "nats", "sequential"),
    "advantage": ("advantage", "", "diverging"),
    "loss_mask": ("loss mask", "", "category"),
    "policy_version": ("policy version", "", "category"),
    "trainer_difference": ("trainer − rollout log-prob", "nats", "diverging"),
    "ref_difference": ("reference − rollout log-prob", "nats", "diverging"),
    "step_reward": ("step reward", "", "diverging"),
}
"""Title, unit and scale of the signals that a step always names."""
WHY_NOT: Final = {
    "log_prob": "the engine gave no log-probs for this step",
    "entropy": "no trainer or annotator sent `entropy`",
    "advantage": "no trainer or annotator sent `advantages`; a trainer's adapter makes them, and a batch's export has them",
    "loss_mask": "no recipe made a sample of this step",
    "policy_version": "the engine did not say which weights sampled it",
    "trainer_difference": "no trainer sent `log_probs` of this step's sample",
    "ref_difference": "no annotator sent `ref_log_probs`",
    "step_reward": "no reward of a step is in this step's sample",
}
NAMES: Final = {"entropy": ("entropy", "entropies"), "advantage": ("advantages", "advantage")}
_USED: Final = {"entropy", "entropies", "advantages", "advantage", "log_probs", "ref_log_probs"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample's tokens lie in a context: sample token `at + i` is context token `start + i`, for `length` tokens."""

    sample: Row
    at: int
    start: int
    length: int

    def spread(self, values: Sequence[Any], size: int) -> Values:
        """A sample's values, one per token of a context of this size."""
        spread: Values = [None] * size
        for i in range(self.length):
            if self.at + i < len(values):
                spread[self.start + i] = finite(values[self.at + i])
        return spread


def place(sample: Row, step_id: str, prompt: Sequence[int], response: Sequence[int]) -> Place | None:
    """Where the sample has the step: the whole context if the sample begins with it, else the response alone."""
    span = next((s for s in map(fields_of_span, sample["spans"]) if s["step_id"] == step_id), None)
    if span is None:
        return None
    end = int(span["end"])
    if list(sample["token_ids"][:end]) == [*prompt, *response]:
        return Place(sample, 0, 0, end)
    return Place(sample, int(span["start"]), len(prompt), min(end - int(span["start"]), len(response)))


def fields_of_span(span: Any) -> Mapping[str, Any]:
    """A span by name, also where the client gives it as a tuple."""
    if isinstance(span, Mapping):
        return span
    return dict(zip(("step_id", "step_index", "start", "end", "reward"), span, strict=True))


def read(
    step: Row, context: Row, samples: Sequence[Row], stats: Sequence[Row], annotations: Sequence[Row]
) -> dict[str, Any]:
    """Ids and signals of a step's context.

    Returns `ids` (prompt, then response), `prompt_tokens`, `sample` (whose mask it is) and `signals`: name, title, unit,
    scale and either `values` (one per id) or `missing` (why).
    """
    prompt, response = list(context["prompt_ids"]), list(context["response_ids"])
    size = len(prompt) + len(response)
    places = [p for s in samples if (p := place(s, step["step_id"], prompt, response)) is not None]
    chosen = max(places, key=lambda p: p.length, default=None)
    sent = _sent(chosen, stats, annotations, len(prompt), size)
    found = _known(step, context, chosen, sent, len(prompt), size)
    signals: list[dict[str, Any]] = []
    for name, (title, unit, scale) in TITLES.items():
        values = found.get(name)
        head = {"name": name, "title": title, "unit": unit, "scale": scale}
        known = values is not None and any(value is not None for value in values)
        signals.append({**head, "values": values} if known else {**head, "missing": WHY_NOT[name]})
    for name, values in sorted(sent.items()):
        if name not in _USED:
            signals.append({"name": name, "title": name, "unit": "", "scale": "sequential", "values": values})
    return {
        "ids": [*prompt, *response],
        "prompt_tokens": len(prompt),
        "sample": {"id": chosen.sample["sample_id"], "recipe": chosen.sample["recipe"]} if chosen else None,
        "signals": signals,
    }


def _sent(
    chosen: Place | None, stats: Sequence[Row], annotations: Sequence[Row], prompt: int, size: int
) -> dict[str, Values]:
    """What annotators and trainers sent, by name; what a trainer sent goes before what an annotator sent."""
    found: dict[str, Values] = {}
    for row in annotations:
        values: Values = [None] * size
        for i, value in enumerate(row["values"][: size - prompt]):
            values[prompt + i] = finite(value)
        found[row["name"]] = values
    if chosen is not None:
        for name, values_of in dict(chosen.sample["annotation_values"]).items():
            found[name] = chosen.spread(values_of, size)
        for row in stats:
            if row["sample_id"] == chosen.sample["sample_id"]:
                found[row["name"]] = chosen.spread(row["values"], size)
    return found


def _known(
    step: Row, context: Row, chosen: Place | None, sent: Mapping[str, Values], prompt: int, size: int
) -> dict[str, Values | None]:
    log_probs: Values = [None] * size
    mask: Values | None = None
    rewards: Values | None = None
    versions: Values = [None] * size
    if chosen is not None:
        mask = chosen.spread(chosen.sample["loss_mask"], size)
        old = chosen.spread(chosen.sample["rollout_log_probs"], size)
        log_probs = [value if masked == 1 else None for value, masked in zip(old, mask, strict=True)]
        spans = [
            span if isinstance(span, Mapping) else dict(zip(("version", "start", "end"), span, strict=True))
            for span in chosen.sample["version_spans"]
        ]
        by_token: list[Any] = [None] * len(chosen.sample["token_ids"])
        for span in spans:
            by_token[span["start"] : span["end"]] = [span["version"]] * (span["end"] - span["start"])
        versions = [v if m == 1 else None for v, m in zip(chosen.spread(by_token, size), mask, strict=True)]
        rewards = _step_rewards(chosen, size)
    for i, value in enumerate(context["rollout_log_probs"]):
        log_probs[prompt + i] = finite(value)
    for start, end, version in _versions(step, size - prompt):
        versions[prompt + start : prompt + end] = [version] * (end - start)
    return {
        "log_prob": log_probs,
        "loss_mask": mask,
        "policy_version": versions,
        "step_reward": rewards,
        "trainer_difference": _less(sent.get("log_probs"), log_probs),
        "ref_difference": _less(sent.get("ref_log_probs"), log_probs),
        **{name: next((sent[n] for n in names if n in sent), None) for name, names in NAMES.items()},
    }


def _step_rewards(chosen: Place, size: int) -> Values:
    by_token: list[Any] = [None] * len(chosen.sample["token_ids"])
    for span in map(fields_of_span, chosen.sample["spans"]):
        if span["reward"] is not None:
            by_token[span["start"] : span["end"]] = [span["reward"]] * (span["end"] - span["start"])
    return chosen.spread(by_token, size)


def _versions(step: Row, response: int) -> list[tuple[int, int, float | None]]:
    """The step's own versions: [start, end) of the response."""
    spans = [
        span if isinstance(span, Mapping) else dict(zip(("version", "start", "end"), span, strict=True))
        for span in step["version_spans"]
    ]
    if spans:
        return [(int(s["start"]), min(int(s["end"]), response), finite(s["version"])) for s in spans]
    return [(0, response, finite(step["policy_version"]))]


def _less(of: Values | None, base: Values) -> Values | None:
    if of is None:
        return None
    return [finite(a - b) if a is not None and b is not None else None for a, b in zip(of, base, strict=True)]
