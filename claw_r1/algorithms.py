"""The algorithms that a recipe may name: where each comes from, what it changes in a recipe, and what it needs of a trainer.

A preset only fills in what the recipe does not say: the fields of a recipe that are written always win, and the recipe that
goes onto the log holds all of them, so that a later preset changes no recipe that is in force.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Algorithm = Literal["grpo", "dapo", "rloo", "reinforce", "ppo", "gspo", "sft", "dpo", "kto", "distill"]
Shape = Literal["all", "best", "pair", "label"]


@dataclass(frozen=True, slots=True)
class Preset:
    """An algorithm as a recipe sees it."""

    name: Algorithm
    paper: str
    url: str
    does: str
    """What it changes: one or two sentences."""
    shapes: tuple[Shape, ...] = ("all",)
    """What `pick.how` may be."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a recipe that does not say otherwise."""


PRESETS: Final[Mapping[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset(
            "grpo",
            "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
            "https://arxiv.org/abs/2402.03300",
            "The advantage is the reward less its group's mean, over the group's standard deviation. Changes nothing.",
        ),
        Preset(
            "dapo",
            "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
            "https://arxiv.org/abs/2503.14476",
            "GRPO's advantage with dynamic sampling: groups whose rewards are all equal teach nothing and are left out. Its "
            "loss over tokens and its wider clip are the trainer's.",
            defaults={"filters": [{"field": "reward_std", "op": "gt", "value": 0}]},
        ),
        Preset(
            "rloo",
            "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
            "https://arxiv.org/abs/2402.14740",
            "The advantage is the reward less the mean reward of the group's other trajectories. Changes nothing.",
        ),
        Preset(
            "reinforce",
            "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning (Williams, 1992)",
            "https://doi.org/10.1007/BF00992696",
            "The advantage is the reward itself, so that a group needs one trajectory only.",
            defaults={"group": {"size": 1}},
        ),
        Preset(
            "ppo",
            "Proximal Policy Optimization Algorithms",
            "https://arxiv.org/abs/1707.06347",
            "Advantages come from the trainer's critic, or from the annotation `values` where the recipe requires it: a group "
            "needs one trajectory only.",
            defaults={"group": {"size": 1}},
        ),
        Preset(
            "gspo",
            "Group Sequence Policy Optimization",
            "https://arxiv.org/abs/2507.18071",
            "GRPO's advantage; its ratio of whole sequences is the trainer's. Changes nothing.",
        ),
        Preset(
            "sft",
            "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
            "https://arxiv.org/abs/2304.06767",
            "Rejection sampling: of each group the trajectory with the highest reward is trained, with the advantage 1.",
            shapes=("all", "best"),
            defaults={"group": {"size": 4}, "pick": {"how": "best", "count": 1}},
        ),
        Preset(
            "dpo",
            "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
            "https://arxiv.org/abs/2305.18290",
            "The best and the worst trajectory of a group become a pair: `chosen` and `rejected`. A group whose best is not "
            "better than its worst by more than `pick.min_gap` is left out.",
            shapes=("pair",),
            defaults={"group": {"size": 2}, "pick": {"how": "pair"}},
        ),
        Preset(
            "kto",
            "KTO: Model Alignment as Prospect Theoretic Optimization",
            "https://arxiv.org/abs/2402.01306",
            "Each trajectory is labelled `desirable` if its reward is above `pick.threshold`, else `undesirable`.",
            shapes=("label",),
            defaults={"group": {"size": 1}, "pick": {"how": "label"}},
        ),
        Preset(
            "distill",
            "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
            "https://arxiv.org/abs/2306.13649",
            "A teacher's log-probs of the sampled tokens take the place of rewards: the annotation `teacher_log_probs` is "
            "required, and a missing reward counts 0.",
            defaults={
                "group": {"size": 1},
                "rewards": {"required": [], "on_missing": "zero"},
                "annotations": {"required": ["teacher_log_probs"]},
            },
        ),
    )
}
"""By name, in the order of the documents."""


def fill_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields with those of its algorithm's preset where it says nothing."""
    name = fields.get("algorithm", "grpo")
    preset = PRESETS.get(name) if isinstance(name, str) else None
    return dict(fields) if preset is None else _under(preset.defaults, fields)


def _under(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(given)
    for name, value in defaults.items():
        if name not in filled:
            filled[name] = value
        elif isinstance(value, Mapping) and isinstance(filled[name], Mapping):
            filled[name] = _under(value, filled[name])
    return filled
