"""Items of work over Ray actors that each hold something costly, such as a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def map_over_actors(
    actor_class: type, task: Any, method: str, items: Sequence[Any], *, count: int, cpus: int, gpus: int
) -> Iterator[Any]:
    """Call `actor_class(task).method(item)` for every item on an initialised Ray cluster.

    Results come in the order in which they are finished. Each of `count` actors gets `cpus` and `gpus`; one
    that dies is started again, and its item repeated. What fails for good is a RuntimeError in one line.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3, max_task_retries=3)(actor_class)
    actors: list[Any] = [remote.remote(task) for _ in range(count)]
    pool: Any = ActorPool(actors)
    try:
        yield from pool.map_unordered(lambda actor, item: getattr(actor, method).remote(item), items)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = " ".join(str(cause).split())[:600]
        raise RuntimeError(f"a worker failed with {type(cause).__name__}: {reason}") from None
    finally:
        for actor in actors:
            ray.kill(actor)
