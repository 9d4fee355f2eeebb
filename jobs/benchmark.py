"""Measure or predict what a run costs: `python jobs/benchmark.py WHAT --recipe voc_released [options]`.

WHAT is one of: `step` (a whole training step and its parts), `plain` (components and the step against their
plain formulations), `loader`, `evaluation`, `scaling` (1..N Ray Train workers), `plan` (prediction for a
described machine). Every option of the run (`--a.b VALUE`) may follow. Weights are random and measurements in
float32 unless told otherwise: the weights change no speed, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosa_dist.config.command_line import make_parser
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides
from cosa_dist.config.paths import lasting_place

if TYPE_CHECKING:
    from cosa_dist.benchmark.report import Report
    from cosa_dist.config.schema import RunConfig

WIDTH_OF_A_FILE = 150
WHAT = ("step", "plain", "loader", "evaluation", "scaling", "plan")
MACHINE_FIELDS = {
    "nodes": int,
    "gpus_per_node": int,
    "fp32_tflops": float,
    "bf16_tflops": float,
    "mfu": float,
    "warmup_mfu": float,
    "memory_gb": float,
    "bandwidth_gbs": float,
    "node_bandwidth_gbs": float,
    "latency_us": float,
    "overlap": float,
}


def parser() -> argparse.ArgumentParser:
    """The command line, all options of a run in its help."""
    words = make_parser(__doc__ or "")
    words.add_argument("what", choices=WHAT, help="what to measure")
    words.add_argument("--rounds", type=int, default=3, help="rounds that count; medians are given (3)")
    words.add_argument(
        "--threads", type=int, default=0, help="CPU threads of a process (0: PyTorch's choice)"
    )
    words.add_argument("--device", default="auto", help="cpu, cuda (auto: a GPU if there is one)")
    words.add_argument("--matmul-precision", default="highest", choices=["highest", "high", "medium"])
    words.add_argument("--images", type=int, default=0, help="loader, evaluation: images of a round")
    words.add_argument("--only", nargs="+", default=[], metavar="NAME", help="plain: some components")
    words.add_argument(
        "--workers", type=int, default=2, help="scaling, plan --machine this: most workers (2)"
    )
    words.add_argument("--profile", type=lasting_place, metavar="FOLDER", help="step: write profiler traces")
    words.add_argument("--json", type=lasting_place, metavar="FILE", help="also write the result as JSON")
    words.add_argument("--machine", default="a100", help="plan: rtx3090, a100, h100, this, or a YAML file")
    for name, kind in MACHINE_FIELDS.items():
        words.add_argument(f"--{name.replace('_', '-')}", type=kind, help="plan: of the machine")
    return words


def configuration(arguments: argparse.Namespace, rest: list[str]) -> RunConfig:
    """The run with random weights and, except for a plan, in float32 unless the command line says more.

    Raises:
        ConfigError: one line per problem.
    """
    overrides = parse_overrides(rest)
    overrides.setdefault("model.weights", "none")
    if arguments.what != "plan" or arguments.machine == "this":
        overrides.setdefault("training.precision", "fp32")
    if not arguments.recipe and not arguments.config:
        raise ConfigError("name a run: --recipe voc_released, or --config FILE")
    config = load_config(arguments.recipe, arguments.config, overrides)
    if config.kind == "segmenter":
        raise ConfigError(
            "kind segmenter: a benchmark measures CoSA's steps; name the recipe of a first stage"
        )
    return config


def measure(arguments: argparse.Namespace, config: RunConfig) -> Report:
    """Do what was asked for."""
    import torch

    from cosa_dist.benchmark.workload import default_device, prepare

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.matmul_precision)
    device = default_device() if arguments.device == "auto" else torch.device(arguments.device)
    rounds = arguments.rounds
    if arguments.what == "step":
        from cosa_dist.benchmark.step_speed import measure_step
        from cosa_dist.benchmark.traces import write_traces

        work = prepare(config, device)
        report = measure_step(work, device, rounds)
        if arguments.profile:
            files = write_traces(work, device, arguments.profile)
            report.notes += [f"trace {file}" for file in files]
        return report
    if arguments.what == "plain":
        from tests.oracles.comparison import compare

        return compare(config, device, rounds, arguments.only)
    if arguments.what == "loader":
        from cosa_dist.benchmark.data_speed import measure_loader

        return measure_loader(config, rounds, arguments.images or 256)
    if arguments.what == "evaluation":
        from cosa_dist.benchmark.data_speed import measure_evaluation

        return measure_evaluation(config, device, rounds, arguments.images or config.evaluation.batch_size)
    if arguments.what == "scaling":
        from cosa_dist.benchmark.scaling import measure_scaling

        return measure_scaling(config, arguments.workers, arguments.threads or 1, rounds)
    return make_plan(arguments, config, device)


def make_plan(arguments: argparse.Namespace, config: RunConfig, device: Any) -> Report:
    """Predict the run for the machine of the command line."""
    import torch

    from cosa_dist.benchmark.machine import THIS, read_machine
    from cosa_dist.benchmark.planning import plan, slowdown, this_machine, worker_counts

    changes = {name: getattr(arguments, name) for name in MACHINE_FIELDS}
    changes = {name: value for name, value in changes.items() if value is not None}
    if arguments.machine != THIS:
        return plan(config, read_machine(arguments.machine, changes))
    machine = this_machine(config, device, arguments.workers, arguments.rounds)
    machine = type(machine).model_validate({**machine.model_dump(), **changes})
    shared = {}
    if device.type == "cpu":
        shared = {n: slowdown(n, torch.get_num_threads()) for n in worker_counts(machine)}
    return plan(config, machine, shared)


def show(report: Report, json: Path | None) -> None:
    """Print a result, and write it as JSON if asked to."""
    from rich.console import Console

    from cosa_dist.benchmark.report import store

    report.show(Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE))
    if json:
        store([report], json)


def main() -> int:
    """Return the exit code: 0 done, 1 a worker failed, 2 bad input, 130 interrupted."""
    # `--plan` is the short way to say `plan`.
    words = ["plan" if word == "--plan" else word for word in sys.argv[1:]]
    arguments, rest = parser().parse_known_args(words)
    try:
        if arguments.rounds < 1 or arguments.workers < 1 or arguments.threads < 0:
            raise ConfigError("--rounds and --workers must be 1 or more, --threads 0 or more")
        report = measure(arguments, configuration(arguments, rest))
        show(report, arguments.json)
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
