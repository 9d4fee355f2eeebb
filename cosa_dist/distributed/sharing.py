"""How a global batch is shared by workers, and by which numbers of workers it can be.

The global batch is the only batch setting; each worker's part and its micro-batches follow from the number
of workers, or the run is refused with the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.order import micro_batch


def largest_micro_batch(global_batch: int, workers: int, wanted: int) -> int:
    """The largest micro-batch that cuts a worker's part evenly and is not above `wanted` (0: the part).

    Raises:
        ConfigError: the batch cannot be shared by so many workers.
    """
    part = micro_batch(global_batch, workers, 0)
    return next(size for size in range(min(wanted or part, part), 0, -1) if part % size == 0)


def check_batch_norm(config: RunConfig, workers: Iterable[int], use_gpu: bool) -> None:
    """Refuse passes of a single picture through a batch norm that sees no others.

    UPerNet pools each picture to one cell, of which there is no variance. GPUs share their statistics.

    Args:
        config: the run.
        workers: numbers of workers that it may have.
        use_gpu: whether each of them has a GPU.

    Raises:
        ConfigError: there would be such passes.
    """
    if config.kind != "segmenter" or config.segmenter.decoder_norm != "batch":
        return
    batch, wanted = config.training.global_batch_size, config.training.micro_batch_size
    for number in workers:
        if largest_micro_batch(batch, number, wanted) == 1 and not (use_gpu and number > 1):
            raise ConfigError(
                f"segmenter.decoder_norm batch needs two pictures or more in a pass, and {number} worker(s) "
                f"would see one at a time (training.global_batch_size {batch}, training.micro_batch_size "
                f"{wanted}): set segmenter.decoder_norm to group, "
                "or take a larger training.micro_batch_size or training.global_batch_size"
            )


def check_sharing_early(config: RunConfig) -> None:
    """Check how the batch is shared, as far as it is sure before the cluster is known.

    Raises:
        ConfigError: no cluster could run this.
    """
    elastic, workers = elastic_numbers(config), config.distributed.workers
    if workers and not elastic:
        micro_batch(config.training.global_batch_size, workers, config.training.micro_batch_size)
    numbers = elastic or (workers or 1,)
    if config.distributed.device == "cpu" or config.distributed.workers == 1:
        check_batch_norm(config, numbers, use_gpu=False)


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
