"""Evaluate a run's checkpoint: `python jobs/evaluate.py outputs/runs/NAME [--split val] [--checkpoint 5000]`.

Prints mIoU by protocol for both networks and the per-class table, writes the reports as JSON, and with
`--control` measures the CAM with predicted labels, its background level chosen on the training images.
`torchrun --nproc-per-node 8 jobs/evaluate.py ...` shares the images among the GPUs of a node (or of several).
`--crf` also measures `unfiltered_crf` and `true_labels_crf`, after a dense CRF on the original image: that of
the run's `evaluation.crf` (the released evaluation's unless changed), or one by name.
`--evaluation.protocol toco` measures as that method's repository does (or cosa, one_view, seco, more, excel,
weclip), and other options of `evaluation.*` change one detail: `--evaluation.size 320`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from cosa_dist.collective import rank, world_size
from cosa_dist.config.paths import lasting_place, place, place_or_url

if TYPE_CHECKING:
    import torch

    from cosa_dist.data.shards.split import Split
    from cosa_dist.evaluation.report import EvalReport


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; the words that are left are options of the evaluation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=place, help="run folder")
    parser.add_argument("--checkpoint", default="", help="best, newest or a step number (default: the best)")
    parser.add_argument("--network", default="", help="one of the run's networks (default: both)")
    parser.add_argument("--shards", type=place_or_url, help="another data set than the run's own")
    parser.add_argument("--split", help="split (default: the run's validation split)")
    parser.add_argument("--limit", type=int, default=0, help="only the first images (0: all)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (auto: a GPU if there is one)")
    parser.add_argument("--control", action="store_true", help="also measure the CAM control")
    parser.add_argument(
        "--crf",
        nargs="?",
        const="configured",
        choices=["configured", "released", "toco", "more", "weclip", "ten_iterations"],
        help="also measure after a dense CRF (without a name: the run's evaluation.crf)",
    )
    parser.add_argument("--out", type=lasting_place, help="folder of the reports (default: the run folder)")
    return parser.parse_known_args()


@contextmanager
def one_of_several(device: torch.device) -> Iterator[torch.device]:
    """This process's device; where torchrun started several processes, they form a group meanwhile."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        # The first process speaks for all.
        with redirect_stdout(StringIO()) if torch.distributed.get_rank() else nullcontext():
            yield device
    finally:
        torch.distributed.destroy_process_group()


def run(arguments: argparse.Namespace, changes: Sequence[str]) -> None:
    """Evaluate on the chosen device, alone or as one of several processes."""
    from cosa_dist.inference.trained import device_named

    with one_of_several(device_named(arguments.device)) as device:
        evaluate(arguments, changes, device)


def evaluate(arguments: argparse.Namespace, changes: Sequence[str], device: torch.device) -> None:
    """Load, evaluate, print and store; of several processes, the first one prints and stores."""
    from rich.progress import Progress

    from cosa_dist.config.loading import evaluation_under
    from cosa_dist.data.reading.loader import EvaluationLoader, open_reading
    from cosa_dist.distributed.plan import loader_processes
    from cosa_dist.evaluation.evaluator import Evaluator, classification_control, with_crf
    from cosa_dist.evaluation.report import as_text
    from cosa_dist.inference.trained import load_chosen
    from cosa_dist.tracking.provenance import usable_cpus
    from cosa_dist.training.state import autocast

    chosen, config, networks = load_chosen(arguments.run, arguments.checkpoint, arguments.network, device)
    own, evaluation = config.evaluation, evaluation_under(config.evaluation, changes)
    networks = {chosen.network: networks[chosen.network]} if arguments.network else networks
    print(chosen if arguments.network else f"both networks of step {chosen.step}; other jobs take {chosen}")
    if arguments.control and config.kind == "segmenter":
        raise ValueError(f"--control: {arguments.run} is a segmenter, which has no CAMs")
    data = config.data.model_copy(update={"shards": arguments.shards or config.data.shards})
    split = open_reading(data, arguments.split or config.data.val_split)
    precision = partial(autocast, config.training.precision, device)
    evaluator = Evaluator.of_run(config, split.class_names, device=device, precision=precision)
    if arguments.crf:
        crf = evaluation.crf if arguments.crf == "configured" else arguments.crf
        evaluation = with_crf(evaluation, crf)
    evaluator = replace(evaluator, config=evaluation)
    loaders = loader_processes(config.data, max(1, usable_cpus() // world_size()), device.type == "cuda")

    def samples(part: Split) -> EvaluationLoader:
        return EvaluationLoader(part, rank(), world_size(), arguments.limit or None, loaders)

    with Progress() as progress:
        task = progress.add_task(f"evaluating {split.name}", total=len(samples(split)))
        shown = replace(evaluator, progress=lambda done: progress.update(task, completed=done))
        evaluated = shown.evaluate(networks, samples(split))
    reports = {name: report.with_intervals() for name, report in evaluated.items()}
    limited = 0 < arguments.limit < split.size
    part = f", the first {arguments.limit} of {split.size} images: not for a ranking" * limited
    print(as_text(list(reports.values())), f"measured at: {evaluation.words}{part}", sep="\n")
    if rank() == 0:
        other = "" if evaluation.protocol == own.protocol else f"_{evaluation.protocol}"
        store(reports, arguments.out or arguments.run, f"{split.name}{other}")
    train = open_reading(data, config.data.train_split) if arguments.control else split
    for name, network in networks.items() if arguments.control else ():
        result = classification_control(network, samples(train), samples(split), evaluator)
        print(
            f"{name}: CAM control, predicted_labels, background {result.background:.2f} chosen on "
            f"{train.name}: {result.validation_miou:.2f}"
        )


def store(reports: Mapping[str, EvalReport], folder: Path, split: str) -> None:
    """Write each network's report as JSON, and its counts of each image."""
    from cosa_dist.distributed.run_folder import RunFolder

    files = RunFolder(folder)
    for name, report in reports.items():
        report.write(files.report_file(name, split), files.counts_file(name, split))
        print(f"written {files.report_file(name, split)}")


def main() -> int:
    """Return the exit code: 0 done, 1 it failed, 2 bad input, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments, changes = parse()
    try:
        run(arguments, changes)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"evaluation failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
