"""Checkpoints while training runs: rank 0 writes, the others wait, and a full disk is not the end.

A checkpoint that cannot be written is a warning: those before it are whole, training goes on, and the next
one is due soon. Only where it happens again and again, or at the end of the run, is it an error.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cosa_dist.collective import barrier, rank
from cosa_dist.training.checkpoint import Score, save_checkpoint
from cosa_dist.training.state import TrainState
from cosa_dist.training.window import check_weights

log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3
"""So many checkpoints may fail one after the other before the run stops."""


class CheckpointWriter:
    """Writes a run's checkpoints; every rank holds one and calls it at the same steps."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Write below `folder`, keeping the newest `keep` and the best."""
        self.folder = folder
        self.keep = keep
        self.failures = 0

    def save(self, state: TrainState, *, must: bool, score: Score | None = None) -> None:
        """Write a checkpoint.

        Args:
            state: what to write; its best score is raised to `score`.
            must: nothing comes after it, so a failure is an error at once.
            score: of an evaluation at this step, which may be the best so far.

        Raises:
            OSError: the disk refused for the third time in a row, or `must`.
            NonFiniteLossError: weights that are not finite are not written.
        """
        check_weights(state.online, state.step)
        before = state.best_score
        best = score if score is not None and score.miou > before else None
        if best is not None:
            state.best_score = best.miou
        if rank() == 0:
            try:
                save_checkpoint(state, self.folder, self.keep, best)
                self.failures = 0
            except OSError as error:
                # No checkpoint holds the better score, so the next one of that score is the best.
                state.best_score = before
                self._bear(error, state.step, must)
        barrier()

    def _bear(self, error: OSError, step: int, must: bool) -> None:
        self.failures += 1
        log.warning("the checkpoint of step %d cannot be written, those before it stay: %s", step, error)
        if must or self.failures >= FAILURES_IN_A_ROW:
            raise error
