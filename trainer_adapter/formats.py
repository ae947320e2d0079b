"""A batch gives itself in trainers' formats: one method for each file of trainer_adapter/targets, which is loaded when asked
for.

Pure. docs/trainers.md shows each of them at work.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from claw_r1.blobs import Blobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainer_adapter.media import Media
    from trainer_adapter.targets.layout import Side
    from trainer_adapter.targets.torch import Layout

Json = dict[str, Any]
Chats = Iterable[Mapping[str, Any]]
"""Rows of the export form `sft`: `messages`, `tools` and `step_id`, the conversation's last step."""


class Formats:
    """The methods of a TrainingBatch; `self` is one."""

    def to_torch(
        self: Any,
        *,
        pad_token_id: int | None = None,
        layout: "Layout" = "padded",
        side: "Side" = "right",
        length: int | None = None,
        rows: "NDArray[np.int64] | None" = None,
    ) -> Json:
        """Tensors of all columns, [n, L] `padded` on a side or [T] `packed`; of all rows or of some, such as `pack` gives
        them: see `targets.torch.arrange`."""
        from trainer_adapter.targets.torch import to_torch

        return to_torch(self, pad_token_id=pad_token_id, layout=layout, side=side, length=length, rows=rows)

    def to_tree(self: Any) -> list[Json]:
        """By group the tensors of its packed prefix tree, in which each shared token stands once: see
        `targets.tree.arrange`."""
        from trainer_adapter.targets.tree import to_tree

        return to_tree(self)

    def to_verl(
        self: Any,
        *,
        pad_token_id: int,
        prompt_length: int | None = None,
        response_length: int | None = None,
        multi_modal_inputs: Sequence[Mapping[str, Any]] | None = None,
        blobs: Blobs | str | None = None,
    ) -> Json:
        """The arguments of verl's `DataProto.from_dict`: see `targets.verl.arrange`."""
        from trainer_adapter.targets.verl import to_verl

        return to_verl(
            self,
            pad_token_id=pad_token_id,
            prompt_length=prompt_length,
            response_length=response_length,
            multi_modal_inputs=multi_modal_inputs,
            blobs=blobs,
        )

    def to_verl_agent_loop(
        self: Any,
        *,
        multi_modal_data: Sequence[Mapping[str, Any]] | None = None,
        blobs: Blobs | str | None = None,
    ) -> dict[str, Json]:
        """By verl's key `{uid}_{session}_{index}` the arguments of an `AgentLoopOutput`: see `targets.verl_agent_loop`."""
        from trainer_adapter.targets.verl_agent_loop import to_verl_agent_loop

        return to_verl_agent_loop(self, multi_modal_data=multi_modal_data, blobs=blobs)

    def to_verl_rows(
        self: Any,
        *,
        global_steps: int,
        multi_modal_inputs: Sequence[Mapping[str, Any]] | None = None,
        blobs: Blobs | str | None = None,
    ) -> Json:
        """Keys, fields and tags for verl's TransferQueue: see `targets.verl_agent_loop.to_verl_rows`."""
        from trainer_adapter.targets.verl_agent_loop import to_verl_rows

        return to_verl_rows(self, global_steps=global_steps, multi_modal_inputs=multi_modal_inputs, blobs=blobs)

    def to_trl(self: Any, *, num_generations: int | None = None) -> dict[str, list[Any]]:
        """What a `rollout_func` of TRL returns: see `targets.trl.to_trl`."""
        from trainer_adapter.targets.trl import to_trl

        return to_trl(self, num_generations=num_generations)

    def to_hf(self: Any) -> Any:
        """A `datasets.Dataset`, a row for each sample: see `targets.hf.to_hf`."""
        from trainer_adapter.targets.hf import to_hf

        return to_hf(self)

    def to_sft(self: Any, *, chats: Chats | None = None) -> Any:
        """A `datasets.Dataset` for supervised fine-tuning, of tokens or of messages: see `targets.hf.list_sft`."""
        from trainer_adapter.targets.hf import to_sft

        return to_sft(self, chats=chats)

    def to_dpo(self: Any, *, chats: Chats | None = None) -> Any:
        """A `datasets.Dataset` of pairs, of tokens or of messages: see `targets.hf.list_dpo`."""
        from trainer_adapter.targets.hf import to_dpo

        return to_dpo(self, chats=chats)

    def to_kto(self: Any, *, chats: Chats | None = None) -> Any:
        """A `datasets.Dataset` of labelled completions, of tokens or of messages: see `targets.hf.list_kto`."""
        from trainer_adapter.targets.hf import to_kto

        return to_kto(self, chats=chats)

    def to_slime(self: Any, *, blobs: Blobs | str | None = None) -> dict[str, list[Any]]:
        """slime's training data: see `targets.slime.to_slime`."""
        from trainer_adapter.targets.slime import to_slime

        return to_slime(self, blobs=blobs)

    def to_prime_rl(self: Any, *, env_name: str, temperature: float, blobs: Blobs | str | None = None) -> list[Json]:
        """The arguments of prime-rl's `TrainingSample`s: see `targets.prime_rl.to_prime_rl`."""
        from trainer_adapter.targets.prime_rl import to_prime_rl

        return to_prime_rl(self, env_name=env_name, temperature=temperature, blobs=blobs)

    def to_openrlhf(self: Any, *, pad_token_id: int, length: int | None = None) -> Json:
        """The arguments of OpenRLHF's `Experience`: see `targets.openrlhf.arrange`."""
        from trainer_adapter.targets.openrlhf import to_openrlhf

        return to_openrlhf(self, pad_token_id=pad_token_id, length=length)

    def to_areal(self: Any, *, pad_token_id: int, length: int | None = None) -> Json:
        """AReaL's trajectory batch: see `targets.areal.arrange`."""
        from trainer_adapter.targets.areal import to_areal

        return to_areal(self, pad_token_id=pad_token_id, length=length)

    def to_arrow(self: Any) -> Any:
        """A `pyarrow.Table`, a row for each sample: see `targets.arrow.to_arrow`."""
        from trainer_adapter.targets.arrow import to_arrow

        return to_arrow(self)

    def open_media(self: Any, blobs: Blobs | str) -> "Media":
        """By row the bytes of its pictures and its routed experts, read from the blob store when asked for."""
        from trainer_adapter.media import Media

        return Media(self, blobs)
