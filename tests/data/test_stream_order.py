"""The order of streamed rows: each once per epoch over all readers; a resume is a question of counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosa_dist.data.reading.order import Piece, StreamOrder, pieces


def handed_out(order: StreamOrder, reader: int, start: int, stop: int) -> dict[int, tuple[int, int, int]]:
    """Position -> (epoch, shard, row of the shard), in the order that the reader hands them out."""
    found: dict[int, tuple[int, int, int]] = {}
    for share in order.parts(reader, start, stop):
        rows = [(p.shard, row) for p in share.pieces for row in range(p.first, p.stop)]
        assert len(rows) == sum(window.size for window in share.windows)
        for window in share.windows:
            held, rows = rows[: window.size], rows[window.size :]
            for pick, position in zip(window.picks, window.positions, strict=True):
                found[int(position)] = (share.epoch, *held[pick])
    return found


def make(counts: tuple[int, ...], **changes: int) -> StreamOrder:
    values = {"seed": 3, "window": 3, "micro_batch_size": 2, "batches_per_step": 1, "world_size": 1}
    return StreamOrder(counts, **(values | {"loaders": 1} | changes))


orders = st.builds(
    StreamOrder,
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=6).map(tuple),
    seed=st.integers(0, 5),
    window=st.integers(1, 7),
    micro_batch_size=st.integers(1, 3),
    batches_per_step=st.integers(1, 3),
    world_size=st.integers(1, 3),
    loaders=st.integers(1, 3),
)


@settings(max_examples=60, deadline=None)
@given(order=orders, start=st.integers(0, 4))
def test_every_row_comes_once_per_epoch_and_a_resume_continues(order: StreamOrder, start: int) -> None:
    batch = order.micro_batch_size * order.batches_per_step * order.world_size
    stop = -(-2 * order.size // batch) + start
    readers = range(order.world_size * order.loaders)
    whole = [handed_out(order, reader, 0, stop) for reader in readers]
    everything = {position: row for part in whole for position, row in part.items()}
    assert sorted(everything) == list(range(stop * batch))
    assert sum(map(len, whole)) == stop * batch
    for epoch in range(2):
        rows = [everything[p] for p in range(epoch * order.size, (epoch + 1) * order.size)]
        expected = Counter((epoch, s, r) for s, count in enumerate(order.counts) for r in range(count))
        assert Counter(rows) == expected
    for reader, part in zip(readers, whole, strict=True):
        resumed = handed_out(order, reader, start, stop)
        assert list(resumed.items()) == [(p, row) for p, row in part.items() if p >= start * batch]
        assert list(part) == sorted(part)


def test_positions_fall_to_ranks_in_blocks_and_to_loaders_in_turn() -> None:
    order = make((20,), micro_batch_size=1, batches_per_step=2, world_size=2, loaders=2)
    # Step 0: rank 0 has positions 0 and 1, rank 1 has 2 and 3; each rank's batches alternate.
    assert order.owners(np.arange(8)).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    three = make((20,), micro_batch_size=1, batches_per_step=1, world_size=1, loaders=3)
    assert three.owners(np.arange(5)).tolist() == [0, 1, 2, 0, 1]


def test_readers_have_contiguous_parts_and_may_share_a_shard() -> None:
    order = make((5, 5), window=100, world_size=2)
    parts = []
    for reader in (0, 1):
        (share,) = order.parts(reader, 0, 2)
        (window,) = share.windows
        parts.append((window.positions.tolist(), share.pieces))
    # Epoch 0 has positions 0..9; rank 0 owns 0 1, 4 5, 8 9, and of these steps 0 and 1 want four.
    assert [positions for positions, _ in parts] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    (whole, head), (tail,) = (pieces for _, pieces in parts)
    assert {whole.shard, head.shard} == {0, 1}
    assert (whole, head, tail) == (Piece(whole.shard, 0, 5), Piece(head.shard, 0, 1), Piece(head.shard, 1, 5))


def test_a_resume_leaves_out_windows_that_are_over() -> None:
    order = make((5, 5), window=2, micro_batch_size=2)
    (share,) = order.parts(0, 3, 5)
    (piece,) = share.pieces
    assert (piece.first, piece.stop) == (1, 5)
    assert [window.positions.tolist() for window in share.windows] == [[6, 7], [8, 9]]


def test_epochs_seeds_and_readers_have_orders_of_their_own() -> None:
    def rows(order: StreamOrder, epoch: int) -> list[tuple[int, int]]:
        found = handed_out(order, 0, 0, 40)
        return [found[p][1:] for p in range(epoch * 40, (epoch + 1) * 40)]

    one = make((10, 10, 10, 10), window=5)
    other = make((10, 10, 10, 10), window=5, seed=4)
    assert rows(one, 0) == rows(one, 0)
    assert len({tuple(rows(*case)) for case in ((one, 0), (one, 1), (other, 0))}) == 3
    assert [row for _, row in rows(one, 0)] != list(range(10)) * 4


def test_pieces_of_shards_end_to_end() -> None:
    assert list(pieces((3, 1, 4), range(2, 6))) == [Piece(0, 2, 3), Piece(1, 0, 1), Piece(2, 0, 2)]
    assert list(pieces((3,), range(1, 1))) == []
    assert list(pieces((3, 1, 4), range(3, 6), (2, 0, 1))) == [Piece(2, 3, 4), Piece(0, 0, 2)]
