"""The thin shell around a worker that Ray Train, or the driver itself, calls.

Ray's controller and Tune's trials unpickle the function, too, though they never call it: what only a worker
needs (networks, accelerator) is imported inside, which saves every one of those processes some seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cosa_dist.distributed.cluster import WORKER_ENVIRONMENT
from cosa_dist.distributed.run_folder import RunFolder, WorkerTask

Report = Callable[[dict[str, float]], None]


def in_one_line(error: BaseException) -> str:
    """Kind and message of an error in one line, at most 600 characters of the message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def ray_worker(payload: dict[str, Any]) -> None:
    """Entry point of one Ray Train worker; `payload` holds the fields of a `WorkerTask`.

    An error that a retry would meet again is recorded in the run folder, and so is a stop that was requested:
    after Ray's restart of the workers they return at once, and the launcher reads the record. On a network
    file system some nodes may not see it yet: one that does is enough. A stop is rank 0's to record, as it
    alone knows that the checkpoint is on the disk.
    """
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for noisy in ("httpx", "alembic", "mlflow", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # One of Ray Train's loggers bears its file's path as name: it would print every report whole.
    logging.root.handlers[0].addFilter(lambda record: "ray/train/" not in record.name)
    task = WorkerTask(**payload)
    folder = RunFolder(Path(task.folder))
    if not folder.path.is_dir():
        raise FileNotFoundError(
            f"this node does not see the run folder {task.folder}: --output must lie on a file "
            "system that all nodes share"
        )
    from cosa_dist.collective import any_rank

    if not any_rank(folder.failure is not None or folder.stopped_by_user is not None):
        import ray.train

        run_and_record(task, folder, ray.train.report)


def run_and_record(task: WorkerTask, folder: RunFolder, report: Report = lambda metrics: None) -> None:
    """Run the worker; record why it ended early, for the launcher and for the workers after a restart."""
    import torch

    from cosa_dist.collective import rank, world_size
    from cosa_dist.distributed.worker import NON_RETRYABLE_ERRORS, run_worker
    from cosa_dist.training.loop import TrainingStoppedError

    try:
        run_worker(task, report=report)
    except TrainingStoppedError as error:
        if rank() == 0:
            folder.stopped_file.write_text(f"{error}\n", encoding="utf-8")
    except NON_RETRYABLE_ERRORS as error:
        line = in_one_line(error)
        if isinstance(error, torch.OutOfMemoryError):
            line = f"the GPU's memory is too small: lower training.micro_batch_size ({line})"
        with contextlib.suppress(OSError):
            folder.failure_file.write_text(f"{line}\n", encoding="utf-8")
        # Alone, it returns as if restarted: Ray would print its own traceback and start it again.
        if world_size() > 1 or not folder.failure:
            raise
