"""The order: each epoch a permutation, and the same samples in a step for any number of workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.config.errors import ConfigError
from cosa_dist.data.reading.order import epoch_order, micro_batch, sample_at, step_positions


@given(size=st.integers(1, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_each_epoch_is_a_permutation_of_all_records(size: int, seed: int, epoch: int) -> None:
    positions = range(epoch * size, (epoch + 1) * size)
    samples = [sample_at(position, size, seed) for position in positions]
    assert {found for found, _ in samples} == {epoch}
    assert sorted(index for _, index in samples) == list(range(size))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = epoch_order(50, 0, 0).tolist()
    assert first != epoch_order(50, 0, 1).tolist()
    assert first != epoch_order(50, 1, 0).tolist()
    epoch_order.cache_clear()
    assert first == epoch_order(50, 0, 0).tolist()


def test_a_cached_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 3


@given(
    step=st.integers(0, 1000),
    world_size=st.integers(1, 6),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
)
def test_all_ranks_together_take_the_step_once(
    step: int, world_size: int, micro: int, accumulation: int
) -> None:
    total = world_size * micro * accumulation
    taken: list[int] = []
    for rank in range(world_size):
        batches = step_positions(step, total, rank, world_size, micro)
        assert [len(batch) for batch in batches] == [micro] * accumulation
        taken += [position for batch in batches for position in batch]
    assert taken == list(range(step * total, (step + 1) * total))


def test_blocks_by_hand() -> None:
    assert step_positions(3, 8, rank=1, world_size=2, micro_batch_size=2) == [[28, 29], [30, 31]]
    assert step_positions(0, 4, 0, 1, 4) == [[0, 1, 2, 3]]


def test_a_batch_is_cut_evenly_or_refused() -> None:
    assert [micro_batch(8, 2), micro_batch(8, 2, 2), micro_batch(8, 8)] == [4, 2, 1]
    for sizes, words in (
        ((8, 3, 0), "8 cannot be shared evenly by 3"),
        ((8, 2, 3), "micro_batch_size 3 does not divide a worker's part of 4"),
        ((1, 2, 0), "1 cannot be shared evenly by 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            micro_batch(*sizes)
