from __future__ import annotations

import logging
import threading

from cosa_dist.tracking.delivery import Delivery, Point


class Receiver:
    """Takes points, unless it is away; `after` counts the points it still takes before leaving."""

    def __init__(self) -> None:
        self.got: list[Point] = []
        self.batches: list[int] = []
        self.away = threading.Event()

    def __call__(self, points) -> None:
        if self.away.is_set():
            raise ConnectionError("away")
        self.batches.append(len(points))
        self.got.extend(points)


def points(first: int, last: int) -> list[Point]:
    return [Point("loss", float(step), step, step) for step in range(first, last)]


def delivery(receiver, **options) -> Delivery:
    settings = {"seconds": 60.0, "longest_pause": 0.2} | options
    return Delivery(receiver, lambda error: isinstance(error, KeyError), **settings)


def test_everything_arrives_once_in_order_and_in_batches():
    receiver = Receiver()
    sender = delivery(receiver, batch=30)
    sender.add_points(points(0, 100))
    assert sender.close(10) == 0
    assert receiver.got == points(0, 100)
    assert max(receiver.batches) == 30


def test_an_outage_keeps_points_and_sends_each_once_afterwards():
    receiver = Receiver()
    sender = delivery(receiver, batch=10)
    sender.add_points(points(0, 20))
    sender.flush(10)
    receiver.away.set()
    sender.add_points(points(20, 50))
    sender.flush(10)
    assert sender.undelivered == 30
    sender.add_points(points(50, 60))
    receiver.away.clear()
    assert sender.close(10) == 0
    assert receiver.got == points(0, 60)


def test_a_long_outage_is_reported_at_close():
    receiver = Receiver()
    receiver.away.set()
    sender = delivery(receiver)
    sender.add_points(points(0, 7))
    sender.add_action("tags", lambda: receiver(points(0, 1)))
    assert sender.close(0.3) == 8
    assert receiver.got == []


def test_adding_never_waits_for_a_receiver_that_hangs():
    released = threading.Event()
    sender = delivery(lambda batch: released.wait(30), batch=1)
    for step in range(50):
        sender.add_points(points(step, step + 1))
    assert sender.undelivered > 0
    released.set()
    assert sender.close(10) == 0


def test_a_failing_action_holds_up_neither_points_nor_other_actions():
    receiver = Receiver()
    done: list[str] = []

    def fail() -> None:
        raise ConnectionError("no artifact store")

    sender = delivery(receiver)
    sender.add_action("file", fail)
    sender.add_action("tags", lambda: done.append("tags"))
    sender.add_points(points(0, 5))
    assert sender.close(4) == 1
    assert receiver.got == points(0, 5)
    assert done == ["tags"]


def test_what_is_refused_for_good_is_given_up_and_counted(caplog):
    def refuse(batch) -> None:
        if any(point.key == "bad" for point in batch):
            raise KeyError("run was deleted")

    sender = delivery(refuse, batch=2)
    with caplog.at_level(logging.WARNING):
        sender.add_points([Point("bad", 0.0, 0, 0), Point("bad", 1.0, 1, 1), *points(0, 3)])
        assert sender.close(10) == 2
    assert "run was deleted" in caplog.text
