"""The components and the whole step against their plain formulations, turn by turn in one run."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from cosa_dist.benchmark.measure import Report, Row, Table, in_turn, median_seconds, run_facts
from cosa_dist.benchmark.workload import phase_steps, prepare
from cosa_dist.config.errors import ConfigError, nearest
from cosa_dist.config.schema import RunConfig
from cosa_dist.losses.energy import dense_energy_loss
from cosa_dist.stopwatch import synchroniser
from tests.oracles.components import COMPONENTS, make_inputs
from tests.oracles.plain_step import check_plain, plain_step

SHORTEST = 0.3
"""seconds of a round: what is shorter is called several times, so that the scheduler has its turns"""
WHOLE = "step"
NAMES = (*COMPONENTS, WHOLE)


def compare(config: RunConfig, device: torch.device, rounds: int, only: Sequence[str] = ()) -> Report:
    """Measure the plain formulation and ours of some components, and of the whole step.

    Args:
        config: the run; a `*_released` recipe for the whole step.
        device: where to compute.
        rounds: turns of each way that count, after one that does not.
        only: names out of `NAMES`; default: all.

    Raises:
        ConfigError: an unknown name, or a recipe that the plain step does not do.
    """
    chosen = list(only) or list(NAMES)
    for name in chosen:
        if name not in NAMES:
            raise ConfigError(f"--only {name}: no such component{nearest(name, NAMES)}")
    if WHOLE in chosen:
        check_plain(config)
    rows: list[Row] = []
    components = [name for name in chosen if name != WHOLE]
    if components:
        given = make_inputs(prepare(config, device, loader=False), device)
        for name in components:
            pair = COMPONENTS[name](given)
            rows.append(_row(pair.name, pair.plain, pair.ours, device, rounds))
        del given
    rows += _whole_steps(config, device, rounds) if WHOLE in chosen else []
    return Report(
        "plain",
        run_facts(config, device),
        [Table("plain formulation against ours (medians)", rows)],
        [
            "the whole plain step uses our lattice for its energy: the released code's is compiled, "
            "the plain one is not",
            "losses are measured forward and backward",
            "beside a busy core: ours again in the same turns, while another process computes without end",
        ],
    )


def _row(
    name: str, plain: Callable[[], object], ours: Callable[[], object], device: torch.device, rounds: int
) -> Row:
    with busy_process() as busy:

        def beside() -> None:
            busy.send_signal(signal.SIGCONT)
            several()
            busy.send_signal(signal.SIGSTOP)

        def several() -> None:
            for _ in range(calls):
                ours()

        calls = max(1, int(SHORTEST / median_seconds(ours, 1, device)))
        ways = {"plain": plain, "ours": several} | ({"busy": beside} if device.type == "cpu" else {})
        seconds = in_turn(ways, rounds, synchroniser(device))
    slow, fast = statistics.median(seconds["plain"]), statistics.median(seconds["ours"]) / calls
    row: Row = {"what": name, "plain s": slow, "ours s": fast, "times faster": slow / fast}
    if device.type == "cpu":
        crowded = statistics.median(seconds["busy"]) / calls
        row |= {"beside a busy core s": crowded, "times alone": crowded / fast}
    return row


@contextmanager
def busy_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps one core busy between the signals SIGCONT and SIGSTOP."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        busy.send_signal(signal.SIGSTOP)
        try:
            yield busy
        finally:
            busy.kill()


def _whole_steps(config: RunConfig, device: torch.device, rounds: int) -> list[Row]:
    """Rows of the whole step in each phase."""
    ours = prepare(config, device, loader=False)
    theirs = prepare(config, device, loader=False)
    rows = []
    for phase, step in phase_steps(config).items():

        def plain(step: int = step) -> None:
            theirs.state.step = step
            batch, precision = next(theirs.steps)[0].to(device), theirs.accelerator.autocast
            plain_step(theirs.state, batch, dense_energy_loss, precision)

        def own(step: int = step) -> None:
            ours.take(step, device)

        rows.append(_row(f"{WHOLE}, {phase}", plain, own, device, rounds))
    return rows
