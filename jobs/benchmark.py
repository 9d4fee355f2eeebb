"""Measure or predict what a run costs: `python jobs/benchmark.py WHAT --recipe voc_released [options]`.

WHAT is one of: `step` (a whole training step and its parts), `gpu` (steps of one GPU for several batches and
number formats, with a sanity check), `checkpoint` (how long training stands still for one), `loader`,
`reading` (mapped and streaming, local and over HTTP), `evaluation`, `scaling` (1..N Ray Train workers),
`plan` (prediction for a described machine).
Every option of the run (`--a.b VALUE`) may follow. Weights are random and measurements in float32 unless told
otherwise: the weights change no speed, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from cosa_dist.config.command_line import make_parser
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides
from cosa_dist.config.paths import lasting_place

if TYPE_CHECKING:
    from cosa_dist.benchmark.measure import Report
    from cosa_dist.config.schema import RunConfig

WIDTH_OF_A_FILE = 150
WHAT = ("step", "gpu", "checkpoint", "loader", "reading", "evaluation", "scaling", "plan")
MACHINE_FIELDS = {
    "nodes": int,
    "gpus_per_node": int,
    "fp32_tflops": float,
    "tf32_tflops": float,
    "bf16_tflops": float,
    "mfu": float,
    "warmup_mfu": float,
    "host_ms": float,
    "warmup_host_ms": float,
    "memory_gb": float,
    "bandwidth_gbs": float,
    "node_bandwidth_gbs": float,
    "latency_us": float,
    "overlap": float,
}


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Options of every measurement."""
    parser.add_argument("--rounds", type=int, help="rounds that count; medians are given (3; gpu: 20)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of a process (0: PyTorch's choice)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda (auto: a GPU if there is one)")
    parser.add_argument("--matmul-precision", default="highest", choices=["highest", "high", "medium"])
    parser.add_argument("--json", type=lasting_place, metavar="FILE", help="also write the result as JSON")


def make_benchmark_parser() -> argparse.ArgumentParser:
    """The command line, all options of a run in its help."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("what", choices=WHAT, help="what to measure")
    add_measuring_options(parser)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="gpu: images of a step"
    )
    parser.add_argument(
        "--images", type=int, default=0, help="loader, reading, evaluation: images of a round"
    )
    parser.add_argument("--against", metavar="COMMIT", help="loader, checkpoint: in turn with that commit")
    parser.add_argument(
        "--workers", type=int, default=2, help="scaling, plan --machine this: most workers (2)"
    )
    parser.add_argument("--profile", type=lasting_place, metavar="FOLDER", help="step: write profiler traces")
    parser.add_argument(
        "--machine", default="a100", help="plan: rtx3090, a100, h100, h200, this, or a YAML file"
    )
    for name, kind in MACHINE_FIELDS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="plan: of the machine")
    return parser


def configuration(arguments: argparse.Namespace, rest: list[str], *, measured: bool) -> RunConfig:
    """The run with random weights and, if it is measured, in float32, unless the command line says otherwise.

    Raises ConfigError, one line per problem.
    """
    overrides = parse_overrides(rest)
    overrides.setdefault("model.weights", "none")
    if measured:
        overrides.setdefault("training.precision", "fp32")
    if not arguments.recipe and not arguments.config:
        raise ConfigError("name a run: --recipe voc_released, or --config FILE")
    config = load_config(arguments.recipe, arguments.config, overrides)
    if config.kind == "segmenter":
        raise ConfigError(
            "kind segmenter: a benchmark measures CoSA's steps; name the recipe of a first stage"
        )
    return config


def measuring_device(arguments: argparse.Namespace) -> Any:
    """The device to measure on, PyTorch set up as the options say."""
    import torch

    from cosa_dist.training.state import set_arithmetic

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    set_arithmetic(arguments.matmul_precision)
    if arguments.device != "auto":
        return torch.device(arguments.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(arguments: argparse.Namespace, rest: list[str]) -> Report:
    """Measure or predict what was asked for."""
    predicted = arguments.what == "plan" and arguments.machine != "this"
    config = configuration(arguments, rest, measured=not predicted)
    device, rounds, images = measuring_device(arguments), arguments.rounds or 3, arguments.images
    match arguments.what:
        case "step":
            from cosa_dist.benchmark.step import measure_step, write_traces
            from cosa_dist.benchmark.workload import prepare

            work = prepare(config, device)
            report = measure_step(work, device, rounds)
            if arguments.profile:
                report.notes += [f"trace {file}" for file in write_traces(work, device, arguments.profile)]
            return report
        case "gpu":
            return measure_one_gpu(arguments, config, device)
        case "checkpoint":
            from cosa_dist.benchmark.step import measure_checkpoint

            return measure_checkpoint(config, arguments.against or "", rounds)
        case "scaling":
            from cosa_dist.benchmark.scaling import measure_scaling

            return measure_scaling(config, arguments.workers, arguments.threads or 1, rounds)
        case "plan":
            from cosa_dist.benchmark.plan import Machine, plan, read_machine, this_machine

            given = {name: getattr(arguments, name) for name in MACHINE_FIELDS}
            changes = {name: value for name, value in given.items() if value is not None}
            if predicted:
                return plan(config, read_machine(arguments.machine, changes))
            machine = this_machine(config, device, arguments.workers, rounds)
            return plan(config, Machine.model_validate({**machine.model_dump(), **changes}))
        case what:
            from cosa_dist.benchmark import loading

            if what == "evaluation":
                some = images or config.evaluation.batch_size
                return loading.measure_evaluation(config, device, rounds, some)
            if what == "loader" and arguments.against:
                return loading.measure_loader_against(config, arguments.against, rounds, images or 256)
            pass_over = loading.measure_loader if what == "loader" else loading.measure_reading
            return pass_over(config, rounds, images or 256)


def measure_one_gpu(arguments: argparse.Namespace, config: RunConfig, device: Any) -> Report:
    """Measure one GPU; each row is printed and stored as soon as it is there. ConfigError without CUDA."""
    if device.type != "cuda":
        raise ConfigError("gpu: this machine has no CUDA device: `step` measures CPUs, `plan` predicts")
    if min(arguments.batches) < 1:
        raise ConfigError(f"--batches {min(arguments.batches)}: give 1 or more")
    # cuBLAS reads it before its first product; the deterministic resume needs it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from cosa_dist.benchmark.gpu import measure_gpu
    from cosa_dist.benchmark.measure import as_text

    def told(report: Report, title: str, row: dict[str, Any]) -> None:
        if arguments.json:
            report.store(arguments.json)
        print(f"{title}: " + "  ".join(f"{name} {as_text(cell)}" for name, cell in row.items()), flush=True)

    return measure_gpu(config, device, arguments.batches, arguments.rounds or 20, told)


def report_and_exit_code(make: Any, arguments: argparse.Namespace) -> int:
    """Make a report, show and store it; 0 done, 1 a worker failed or a figure is wrong, 2 bad input."""
    from rich.console import Console

    try:
        rounds = 1 if arguments.rounds is None else arguments.rounds
        if rounds < 1 or getattr(arguments, "workers", 1) < 1 or arguments.threads < 0:
            raise ConfigError("--rounds and --workers must be 1 or more, --threads 0 or more")
        report = make()
        report.show(Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE))
        if arguments.json:
            report.store(arguments.json)
        return int(bool(report.failures))
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def main() -> int:
    """Return the exit code of `report_and_exit_code`."""
    # `--plan` is the short way to say `plan`.
    words = ["plan" if word == "--plan" else word for word in sys.argv[1:]]
    arguments, rest = make_benchmark_parser().parse_known_args(words)
    return report_and_exit_code(lambda: measure(arguments, rest), arguments)


if __name__ == "__main__":
    sys.exit(main())
