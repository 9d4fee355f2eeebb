"""How a global batch is shared by workers, and by which numbers of workers it can be.

The global batch is the only batch setting; each worker's part and its micro-batches follow from the number
of workers, or the run is refused with the numbers.
"""

from __future__ import annotations

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig


def micro_batch(global_batch: int, workers: int, wanted: int) -> int:
    """Images that a worker computes at a time.

    Args:
        global_batch: images of one optimiser step over all workers.
        workers: number of workers.
        wanted: micro-batch asked for, 0 for a worker's whole part.

    Raises:
        ConfigError: the batch cannot be cut evenly.
    """
    part, rest = divmod(global_batch, workers)
    if rest or part == 0:
        raise ConfigError(
            f"training.global_batch_size {global_batch} cannot be shared evenly by {workers} "
            f"workers; choose a multiple of {workers} or another distributed.workers"
        )
    micro = wanted or part
    if part % micro:
        raise ConfigError(
            f"training.micro_batch_size {micro} does not divide a worker's part of {part} "
            f"({global_batch} images / {workers} workers)"
        )
    return micro


def largest_micro_batch(global_batch: int, workers: int, wanted: int) -> int:
    """The largest micro-batch that cuts a worker's part evenly and is not above `wanted` (0: the part).

    Raises:
        ConfigError: the batch cannot be shared by so many workers.
    """
    part = micro_batch(global_batch, workers, 0)
    return next(size for size in range(min(wanted or part, part), 0, -1) if part % size == 0)


def elastic_numbers(config: RunConfig) -> tuple[int, ...]:
    """The numbers of workers that an elastic run may have, ascending; empty for a fixed number.

    Raises:
        ConfigError: no number within the bounds shares the global batch evenly, or the samples would
            depend on the number.
    """
    fewest, most = config.distributed.fewest_workers, config.distributed.workers
    if not 0 < fewest < most:
        return ()
    if config.data.reading == "streaming":
        raise ConfigError(
            f"distributed.workers [{fewest}, {most}]: with data.reading streaming the samples depend on the "
            "number of workers; set data.reading to mapped, or one number of workers"
        )
    batch = config.training.global_batch_size
    numbers = tuple(number for number in range(fewest, most + 1) if batch % number == 0)
    if not numbers:
        raise ConfigError(
            f"training.global_batch_size {batch} cannot be shared evenly by any number of workers in "
            f"distributed.workers [{fewest}, {most}]; choose bounds that hold a divisor of {batch}"
        )
    return numbers
