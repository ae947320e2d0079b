"""A batch as verl's agent loop would have made it: un-padded outputs under the keys of its queue."""

import pytest

from claw_r1.errors import UserError
from claw_r1.events import BlobRef
from tests.unit.trainer_adapter.test_batch import a_batch, a_pair
from tests.unit.trainer_adapter.test_targets import two_turns
from trainer_adapter.targets.verl_agent_loop import list_keys


def test_outputs() -> None:
    batch = two_turns()
    outputs = batch.to_verl_agent_loop()
    assert list(outputs) == ["my~group_0_0", "my~group_1_0"]
    assert outputs["my~group_0_0"] == {
        "prompt_ids": [1, 2],
        "response_ids": [3, 4, 5, 6, 7],
        "response_mask": [1, 1, 0, 1, 0],
        "response_logprobs": [-1, -2, 0, -3, 0],
        "reward_score": 1.0,
        "num_turns": 4,
        "metrics": {},
        "extra_fields": {
            "min_global_steps": 3,
            "max_global_steps": 4,
            "reward_extra_info": batch.reward_components[0],
            "sample_id": batch.sample_ids[0],
            "trajectory_uid": "my_group-t0",
            "task_id": None,
        },
    }
    assert outputs["my~group_1_0"]["extra_fields"]["min_global_steps"] is None


def test_keys_count_trajectories_and_their_rows_within_each_group() -> None:
    forked = a_batch(a_pair("a", (1.0, 0.0), samples=2), a_pair("b_c", (1.0,)))
    assert list_keys(forked) == ["a_0_0", "a_0_1", "a_1_0", "a_1_1", "b~c_0_0"]
    with pytest.raises(UserError, match="padding rows are in none"):
        [forked.shard(rank, 4).to_verl_agent_loop() for rank in range(4)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_have_the_keys_of_the_whole_batch(world: int) -> None:
    """In one queue a key that two ranks gave would be one row for both."""
    batch = a_batch(a_pair("a", (1.0, 0.0, 0.5, 2.0)), a_pair("b", (1.0, 0.0, 0.5, 2.0), samples=2), a_pair("c"))
    keys = dict(zip(batch.sample_ids, list_keys(batch), strict=True))
    assert len(set(keys.values())) == len(batch) == 14
    shards = [batch.shard(rank, world) for rank in range(world)]
    real = [shard for shard in shards if not shard.n_padding]
    assert len(real) >= min(world, 2)
    for shard in real:
        assert list_keys(shard) == [keys[name] for name in shard.sample_ids]
    assert [shard.index_in_group[len(shard) - shard.n_padding :].tolist() for shard in shards] == [
        [-1] * shard.n_padding for shard in shards
    ]


def test_pictures_are_given_or_refused() -> None:
    batch = two_turns(multi_modal_data=(BlobRef(sha256="a", bytes=1, kind="image/png"),))
    with pytest.raises(UserError, match="to_verl_agent_loop without multi_modal_data carries no pictures"):
        batch.to_verl_agent_loop()
    outputs = batch.to_verl_agent_loop(multi_modal_data=[{"images": ["picture"]}, {}])
    assert outputs["my~group_0_0"]["multi_modal_data"] == {"images": ["picture"]}
    assert "multi_modal_data" not in outputs["my~group_1_0"]
