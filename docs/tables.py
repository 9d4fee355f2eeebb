"""Tables of results in README.md, docs/*.md and recipes, made from the rows of `docs/results/runs.jsonl`.

    python docs/tables.py                                  # write every table anew
    python docs/tables.py --add outputs/runs/NAME ...      # store the rows of finished runs, then the same

`--add` takes run folders (an ablation's trials are runs too) and files of rows, such as a sweep's
`ablation.jsonl`. A table stands between `<!-- table: NAME -->` and `<!-- end -->`; `TABLES` says which rows
and columns it has. A recipe's line `# measured: ` is written too. A test compares the files with the rows.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cosa_dist.atomic import atomic_write
from cosa_dist.config.ablation import read_ablation
from cosa_dist.config.paths import place
from cosa_dist.reports.result_tables import (
    MEASURES,
    as_markdown,
    combination_of,
    commits_of,
    data_text,
    lines_of,
    seeds_of,
    spread,
)
from cosa_dist.reports.results import (
    CAM_CONTROL,
    ResultRow,
    measured,
    read_result,
    read_rows,
    rows_to_text,
)

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path("docs/results/runs.jsonl")
RECIPES = "cosa_dist/config/recipes"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(?:.*?\n)??(<!-- end -->)", re.DOTALL)
MEASURED = re.compile(r"^# measured: .*$", re.MULTILINE)
COMBINATIONS = read_ablation(ROOT / "sweeps/ablation.yaml").chosen()

Rows = Sequence[ResultRow]

UNFILTERED = {"unfiltered": "unfiltered"}
PROTOCOLS = {name: name for name in ("unfiltered", "predicted_labels", "true_labels")}
CAM = {"CAM (true_labels)": "cam_true_labels"}
CAMS = {**CAM, "auxiliary CAM (true_labels)": "aux_cam_true_labels"}
TRAIN = {"rails taken for train": "context train", "IoU train": "iou train"}
MASKS = {
    "pseudo-masks": "pseudo_masks",
    "pseudo-masks, ignored pixels missed": "pseudo_masks_missed",
    "pixels ignored": "ignored",
}
RATE = "optimizer.learning_rate"
AT_FIRST = "unfiltered at step 300"


def is_recipe(row: ResultRow, recipe: str = "") -> bool:
    """Whether a row is of a recipe as it stands (default: of its own)."""
    return not row.options and not row.note and row.recipe == (recipe or row.recipe)


def on_mini(row: ResultRow) -> bool:
    """Whether a row is of VOC-mini's validation images and a training of one stage at its full length."""
    trained = row.recipe != "voc_mini_ms" and "training.steps" not in row.options
    return trained and (row.dataset, row.split) == ("VOC-mini", "val")


def combination(row: ResultRow) -> str:
    """Name of the combination of the method's parts that a row is of."""
    return combination_of(row, COMBINATIONS)[0]


def is_combination(name: str) -> Callable[[ResultRow], bool]:
    """Whether a row is of this combination."""
    return lambda row: combination(row) == name


def voc_mini(rows: Rows) -> str:
    """Recipes side by side, and the released code on the same images."""

    def shown(row: ResultRow) -> bool:
        return is_recipe(row) or row.recipe == "released code" or list(row.options) == [RATE]

    kept = [row for row in rows if on_mini(row) and shown(row)]
    return as_markdown(kept, PROTOCOLS | CAM, beside=("`voc_mini`", lambda row: is_recipe(row, "voc_mini")))


def demo(rows: Rows) -> str:
    """CoSA beside the CAM of classifiers alone."""
    kept = [row for row in rows if row.recipe == "demo" and row.options in ({}, {"kind": "control"})]
    measures = {**UNFILTERED, "predicted_labels": "predicted_labels", "CAM (predicted_labels)": CAM_CONTROL}
    return as_markdown(kept, measures)


def ablation(rows: Rows, recipe: str, *more: str) -> str:
    """The method's parts on photographs; `more` are combinations that are taken of other recipes too."""
    kept = [row for row in rows if on_mini(row) and (row.recipe == recipe or combination(row) in more)]
    beside = ("`swapped`", is_combination("swapped"))
    return as_markdown(kept, UNFILTERED | CAMS, COMBINATIONS, beside=beside)


def ablation_demo(rows: Rows) -> str:
    """The method's parts on generated data."""
    kept = [row for row in rows if row.recipe == "demo" and row.context]
    return as_markdown(kept, MEASURES | TRAIN, COMBINATIONS)


def separation_demo(rows: Rows) -> str:
    """What separation changes within the whole method."""
    without = "whole_without_separation"
    kept = [row for row in rows if row.recipe == "demo" and combination(row) in (without, "whole")]
    beside = ("the whole without separation", is_combination(without))
    return as_markdown(
        kept, TRAIN | CAM | UNFILTERED, COMBINATIONS, beside=beside, compared=[*TRAIN, *CAM, *UNFILTERED]
    )


def guidance(rows: Rows) -> str:
    """CAMs with and without co-training."""
    kept = [row for row in rows if on_mini(row) and row.recipe == "voc_mini" and RATE not in row.options]
    beside = ("classifiers alone", is_combination("classification"))
    return as_markdown(kept, CAMS, COMBINATIONS, beside=beside, compared=list(CAMS))


def faster(rows: Rows) -> str:
    """Recipes that do less beside the one that they are made from."""
    kept = [row for row in rows if on_mini(row) and is_recipe(row) and row.recipe.startswith("voc_mini")]
    return as_markdown(kept, UNFILTERED, beside=("`voc_mini`", lambda row: is_recipe(row, "voc_mini")))


def sweep(option: str) -> Callable[[Rows], str]:
    """Table of the sweep over an option."""

    def made(rows: Rows) -> str:
        kept = [row for row in rows if option in row.options and AT_FIRST in row.miou]
        measures = {AT_FIRST: AT_FIRST, "at step 400": "unfiltered"}
        return as_markdown(kept, measures, best=("unfiltered", AT_FIRST))

    return made


def two_stages(rows: Rows, first: str, commits: tuple[str, ...], steps: int | None = None) -> str:
    """A first stage's runs at some commits, their pseudo-masks, and second stages of so many steps."""

    def is_first(row: ResultRow) -> bool:
        return is_recipe(row, first) and on_mini(row) and row.commit.startswith(commits)

    def is_second(row: ResultRow) -> bool:
        return row.recipe == "voc_mini_ms" and row.options.get("training.steps") == steps

    masks = [row for row in rows if row.recipe == first and row.images == 1000]
    second = [row for row in rows if is_second(row) and row.note.endswith(f"of {first}")]
    bound = [row for row in rows if is_second(row) and row.options.get("supervision") == "truth"]
    seeds = {row.seed for row in [*masks, *second]}
    kept = [row for row in [*filter(is_first, rows), *masks, *second, *bound] if row.seed in seeds]
    return as_markdown(kept, UNFILTERED | MASKS, beside=("stage one", is_first))


def refinement(rows: Rows) -> str:
    """Pseudo-masks of the first training images."""
    return as_markdown([row for row in rows if row.split == "train" and row.images == 200], MASKS)


def own(rows: Rows) -> str:
    """The tutorial's own photographs."""
    names = ("background", "bowl", "person", "dining table")
    kept = [row for row in rows if row.recipe == "own"]
    return as_markdown(kept, UNFILTERED | {f"IoU {name}": f"iou {name}" for name in names})


TABLES: dict[str, Callable[[Rows], str]] = {
    "threshold_search": sweep("assignment.threshold.low"),
    "loss_weights": sweep("losses.cam_to_seg"),
    "ablation_voc_mini": lambda rows: ablation(rows, "voc_mini_fast", "classification"),
    "ablation_voc_mini_quick": lambda rows: ablation(rows, "voc_mini_quick"),
    "two_stages": lambda rows: two_stages(rows, "voc_mini_fast", ("8616d0e", "6da3470"), steps=1000),
    "two_stages_quick": lambda rows: two_stages(rows, "voc_mini_quick", ("",), steps=1000),
    "two_stages_short": lambda rows: two_stages(rows, "voc_mini", ("681a002",)),
    **{
        made.__name__: made
        for made in (*(voc_mini, demo, ablation_demo, separation_demo, guidance, faster, refinement, own),)
    },
}


def regenerated(path: Path, text: str, rows: Rows) -> str:
    """A page's or a recipe's text with its tables made anew; ValueError for an unknown table."""

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in TABLES:
            raise ValueError(f"{path}: no table {name!r} in docs/tables.py; there are {', '.join(TABLES)}")
        return f"{start}{TABLES[name](rows)}\n{end}"

    if path.suffix == ".yaml":
        return MEASURED.sub(lambda _: f"# measured: {expectation(path.stem, rows)}", text)
    return MARKED.sub(table, text)


def expectation(recipe: str, rows: Rows) -> str:
    """What a recipe gave, in one line: the line of most runs, of equal ones the newest."""
    lines = lines_of([row for row in rows if is_recipe(row, recipe)])
    if not lines:
        return "no run of this recipe is stored"
    line = max(reversed(lines), key=len)
    figures = spread([measured(row, "unfiltered") for row in line])
    return f"unfiltered {figures}, {data_text(line[0])}, seeds {seeds_of(line)}, commits {commits_of(line)}"


def files(root: Path) -> list[Path]:
    """Files below the project's root that may hold tables."""
    return [
        root / "README.md",
        *sorted((root / "docs").glob("*.md")),
        *sorted((root / RECIPES).glob("*.yaml")),
    ]


def write_tables(root: Path) -> list[Path]:
    """Make all tables anew; return the files that changed."""
    rows = read_rows(root / ROWS)
    texts = {path: path.read_text(encoding="utf-8") for path in files(root)}
    made = {path: regenerated(path, text, rows) for path, text in texts.items()}
    changed = [path for path, text in made.items() if text != texts[path]]
    for path in changed:
        atomic_write(path, made[path])
    return changed


def add_rows(root: Path, places: Sequence[Path], **noted: str) -> int:
    """Store the rows of run folders and files of rows, each once; return how many are new.

    `noted` is what `read_result` cannot know of the runs: `commit`, `note`, `machine`.

    Raises:
        ConfigError: a run that is not finished, or of an unknown commit. Then none is stored.
    """
    stored = read_rows(root / ROWS)
    found = [
        row
        for path in places
        for row in (read_rows(path) if path.is_file() else [read_result(path, **noted)])
    ]
    new = [row for place, row in enumerate(found) if row not in stored and row not in found[:place]]
    atomic_write(root / ROWS, rows_to_text([*stored, *new]))
    return len(new)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--add", type=place, nargs="+", default=[], metavar="RUN", help="finished runs")
    made.add_argument("--commit", default="", help="commit of runs whose folders do not note it")
    made.add_argument("--note", default="", help="what sets these runs apart beside their options")
    made.add_argument("--machine", default="", help="what they ran on, e.g. 'two cores, other work beside'")
    return made


def main() -> int:
    """Return the exit code: 0 done, 2 bad input."""
    arguments = parser().parse_args()
    try:
        if arguments.add:
            noted = {name: getattr(arguments, name) for name in ("commit", "note", "machine")}
            print(f"{add_rows(ROOT, arguments.add, **noted)} new rows in {ROWS}")
        for path in write_tables(ROOT):
            print(f"written {path.relative_to(ROOT)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
