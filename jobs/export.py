"""Take a network elsewhere: `python jobs/export.py outputs/runs/NAME --out FOLDER [--format weights]`.

Formats, separated by commas: weights (safetensors, configuration, class names, model card: a Hugging Face
folder), torch_export, onnx (needs `pip install -e '.[export]'`), mlflow. Graphs are compared with the network
before the folder appears.
"""

from __future__ import annotations

import argparse
import sys

from cosa_dist.config.command_line import run_job
from cosa_dist.config.errors import ConfigError, nearest
from cosa_dist.config.paths import lasting_place, place


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("run", type=place, help="run folder, or a folder exported before")
    made.add_argument("--out", type=lasting_place, required=True, help="folder to make")
    made.add_argument("--format", default="weights", help="weights,torch_export,onnx,mlflow (or all)")
    made.add_argument("--checkpoint", default="", help="best, newest or a step number (default: the best)")
    made.add_argument("--network", default="", help="online, assignment, average (default: the better one)")
    made.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    return made


def run(asked: argparse.Namespace, rest: list[str]) -> None:
    """Load, export, and say what was written."""
    if rest:
        raise ConfigError(f"unknown option {rest[0]}; see --help")
    import torch

    from cosa_dist.evaluation.report import read_reports
    from cosa_dist.inference.export import FORMATS, export
    from cosa_dist.inference.trained import load_trained

    words = [word.strip() for word in asked.format.split(",") if word.strip()]
    formats = list(FORMATS) if words == ["all"] else list(dict.fromkeys(words))
    for word in formats:
        if word not in FORMATS:
            raise ConfigError(f"--format {word}: choose some of {', '.join(FORMATS)}{nearest(word, FORMATS)}")
    if not formats:
        raise ConfigError(f"--format names nothing; choose some of {', '.join(FORMATS)}")
    model = load_trained(asked.run, asked.checkpoint, asked.network, torch.device("cpu"))
    print(model.source)
    reports = list(read_reports(asked.run).values())
    for line in export(model, asked.out, formats, reports, asked.overwrite):
        print(line)
    print(f"written {asked.out}")


def main() -> int:
    """Return the exit code: 0 done, 1 a format failed, 2 it could not start."""
    return run_job(parser(), run, what="export", next_step="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
