"""The order: each epoch a permutation, and the same samples in a step for any number of workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.data.errors import DataError
from cosa_dist.data.reading.order import check_batch, epoch_order, sample_at, step_positions


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
    assert step_positions(0, 4) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, 0, 3, None), "8 cannot be shared equally by 3"),
        ((8, 0, 2, 3), "share of 4 samples cannot be cut into micro-batches of 3"),
        ((8, 0, 2, 0), "micro-batches of 0"),
        ((8, 2, 2, None), "rank 2, world size 2"),
        ((0, 0, 1, None), "batch 0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    arguments: tuple[int, int, int, int | None], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        check_batch(*arguments)


def test_numbers_below_zero_are_refused() -> None:
    for call in (lambda: sample_at(-1, 4, 0), lambda: step_positions(-1, 4), lambda: epoch_order(0, 0, 0)):
        with pytest.raises(DataError):
            call()
    assert epoch_order(3, 0, 0).dtype == np.int64
