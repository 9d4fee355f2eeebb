"""Work in threads: in order, a little ahead, errors in their place."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from cosa_dist.inference.predict import in_background


def test_results_come_in_order_and_a_little_ahead():
    begun = []
    second = threading.Event()

    def work(item):
        begun.append(item)
        if item == 1:
            second.set()
        if item == 0:
            assert second.wait(60), "the second one is begun while the first one is at work"
        return item * item

    with ThreadPoolExecutor(2) as pool:
        coming = in_background(work, count(), pool, 3)
        assert [next(coming) for _ in range(5)] == [0, 1, 4, 9, 16]
        coming.close()
    assert max(begun) <= 4 + 3
    with ThreadPoolExecutor(2) as pool:
        assert list(in_background(str, range(5), pool, 10)) == list("01234")


def test_an_error_comes_in_its_place():
    with ThreadPoolExecutor(2) as pool:
        coming = in_background(lambda item: 6 // item, [3, 2, 0, 1], pool, 2)
        assert [next(coming), next(coming)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(coming)
