"""Convert a whole network between the authors' checkpoints and this project's files.

    python jobs/convert_weights.py best_seg.pth network.safetensors [--keep-head]
    python jobs/convert_weights.py outputs/runs/NAME best_seg.pth [--checkpoint STEP] [--network assignment]

The suffix of the second file decides the form: .safetensors is ours, .pth the authors'. No code in a file is
executed. The authors' encoder carries an unused ImageNet head: it is dropped on the way to our form unless
--keep-head is given, and zeros on the way back if it was dropped. `--model.weights network.safetensors`
(or the authors' file itself) starts a run from it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from cosa_dist.config.paths import lasting_place, place


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=place, help="run folder, or file to read: .pth or .safetensors")
    parser.add_argument(
        "target", type=lasting_place, help="file to make: .safetensors (ours) or .pth (the authors')"
    )
    parser.add_argument("--checkpoint", default="", help="best, newest or a step number (default: the best)")
    parser.add_argument("--network", default="", help="online or assignment (default: the better one)")
    parser.add_argument("--keep-head", action="store_true", help="keep the unused head in our form too")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")
    return parser.parse_args(words)


def run(arguments: argparse.Namespace) -> None:
    """Read, write, and say what was converted."""
    source, target = arguments.source, arguments.target
    if target.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{target}: the target must end in .safetensors (our form) or .pth (the authors')")
    if not source.exists():
        raise ValueError(f"no file at {source}")
    if not source.is_dir() and (arguments.checkpoint or arguments.network):
        raise ValueError(f"{source} is a file: --checkpoint and --network choose from a run folder")
    if target.exists() and not arguments.overwrite:
        raise ValueError(f"{target} exists already; choose another name or give --overwrite")
    from safetensors.torch import load_file

    from cosa_dist.model.weights import read_network, write_ours, write_released

    if source.is_dir():
        from cosa_dist.inference.trained import choose

        chosen = choose(source, arguments.checkpoint, arguments.network)
        print(chosen)
        saved = read_network(chosen.encoder)
        own = {} if chosen.encoder == chosen.weights else load_file(chosen.weights)
        saved = replace(saved, state=saved.state | own, network=chosen.network, step=chosen.step)
    else:
        saved = read_network(source)
    if target.suffix == ".pth":
        write_released(saved, target)
    else:
        write_ours(saved, target, keep_head=arguments.keep_head)
    classes = len(saved.state["classifier.weight"])
    print(
        f"written {target}: {saved.network} network of {classes} classes after {saved.step} steps, "
        f"aux_layer {'not known' if saved.aux_layer is None else saved.aux_layer}"
    )


def main(words: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 bad input, 130 interrupted."""
    try:
        run(parse(words))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
