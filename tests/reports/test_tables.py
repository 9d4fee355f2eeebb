"""Tables of results: what the renderer makes of rows, and that every table of the pages is made from rows."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from cosa_dist.config.ablation import Combination
from cosa_dist.reports.result_tables import as_markdown, lines_of
from cosa_dist.reports.results import ResultRow, read_rows, rows_to_text
from docs import tables

ROOT = tables.ROOT
PAGES = [path for path in tables.files(ROOT) if path.suffix == ".md"]
RECIPES = [path for path in tables.files(ROOT) if path.suffix == ".yaml"]
MEASURED = re.compile(r"\bm?IoU\b|unfiltered|(predicted|true)_labels|\bCAM\b", re.IGNORECASE)
"""words of a figure that comes from a run"""
FIGURE = re.compile(r"(?<![\w.-])\d{2}\.\d(?!\d|\.\d|\w)(?! (?:s|GB|images)\b)")
BASE, WITH = (
    Combination("base", (), {"losses.separation": 0}),
    Combination("with_it", (), {"losses.separation": 0.1}),
)


def row(seed: int | None, unfiltered: float | None, separation: float = 0.0, **changes: object) -> ResultRow:
    values = {
        "recipe": "demo",
        "dataset": "synthetic",
        "commit": "abc",
        "seed": seed,
        "miou": {"unfiltered": unfiltered, "cam_true_labels": 30.0},
        "options": {"losses.separation": separation} if separation else {},
        "images": 150,
    }
    return ResultRow(**{**values, **changes})


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]


MEASURES = {"unfiltered": "unfiltered", "CRF": "unfiltered_crf", "IoU train": "iou train"}


def test_a_line_is_mean_and_range_of_the_seeds_and_a_difference_is_seed_by_seed():
    rows = [row(1, 52.0, 0.1), row(0, 40.0), row(0, 49.0, 0.1), row(1, 50.0), row(2, 90.0)]
    table = as_markdown(rows, MEASURES, [BASE, WITH], beside=("base", lambda r: not r.options))
    assert cells(table) == [
        ["combination", "unfiltered", "unfiltered, difference", "seeds", "commits"],
        ["---"] * 5,
        ["base", "60.0 (40.0 to 90.0)", "", "0 1 2", "abc"],
        ["with it", "50.5 (49.0 to 52.0)", "+5.5 (+2.0 to +9.0)", "0 1", "abc"],
    ]
    assert table.splitlines()[-1] == (
        "mIoU in per cent of the better network, mean and in brackets smallest to largest; "
        "difference: to base, seed by seed; `demo`; synthetic val (150 images)."
    )


def test_what_differs_is_a_column_and_what_is_shared_stands_below():
    one = row(0, 40.0, evaluation="96 square, one view", machine="one core", options={"a.b": 1, "a.c": 2})
    other = row(0, 41.0, evaluation="48 square, one view", machine="a GPU", options={"a.b": 1}, note="again")
    third = row(None, 42.0, options={"a.b": 1}, recipe="other", commit="", iou={"train": 7.25})
    table = as_markdown([one, other, third], MEASURES)
    assert cells(table) == [
        ["recipe", "differs in", "evaluation", "unfiltered", "IoU train", "seeds", "commits"],
        ["---"] * 7,
        ["`demo`", "`c 2`", "96 square, one view", "40.0", "-", "0", "abc"],
        ["`demo`", "again", "48 square, one view", "41.0", "-", "0", "abc"],
        ["`other`", "nothing", "", "42.0", "7.2", "?", "not recorded"],
    ]
    shared = "synthetic val (150 images); `b 1`; one core or a GPU or machine not recorded."
    assert table.endswith(f"mIoU in per cent of the better network; {shared}")


def test_one_line_names_its_recipe_and_times_are_means():
    times = {"seconds": 100.0, "evaluation_seconds": 5.0}
    rows = [row(0, 40.0, **times), row(1, 41.0, **times | {"seconds": 20.0}), row(2, 42.0, seconds=999.0)]
    header, _, line = cells(as_markdown(rows, {"unfiltered": "unfiltered"}))
    assert header == ["recipe", "unfiltered", "training, evaluation", "seeds", "commits"]
    assert line == ["`demo`", "41.0 (40.0 to 42.0)", "1 min 00 s, 5 s", "0 1 2", "abc"]


def test_an_interval_is_shown_where_every_run_of_a_line_has_it():
    known = {"interval": {"unfiltered": (30.0, 50.0)}}
    rows = [row(0, 40.0, **known), row(1, 42.0, interval={"unfiltered": (31.5, 53.0)})]
    rows += [row(0, 41.0, 0.1, **known), row(1, 41.0, 0.1)]
    table = as_markdown(rows, {"unfiltered": "unfiltered", "CAM": "cam_true_labels"})
    assert [line[1:3] for line in cells(table)] == [
        ["unfiltered", "unfiltered, 95 %"],
        ["---", "---"],
        ["41.0 (40.0 to 42.0)", "30.8 to 51.5"],
        ["41.0 (41.0 to 41.0)", "-"],
    ]
    assert "95 %: mean bounds of the runs' intervals over images" in table


def test_a_seed_that_ran_again_at_another_commit_begins_a_line_and_commits_are_listed():
    a, b, c = "1" * 40, "2" * 40 + "-dirty", "3" * 40
    joined = [row(0, 1.0, commit=a), row(2, 2.0, commit=a), row(1, 3.0, commit=b)]
    again = [row(0, 4.0, commit=c), row(3, 5.0, commit=c)]
    assert lines_of([*joined, *again]) == [joined, again]
    table = cells(as_markdown([*joined, *again], {"unfiltered": "unfiltered"}))
    assert [line[-2:] for line in table[2:]] == [["0 1 2", "1111111, 2222222-dirty"], ["0 3", "3333333"]]


def test_other_data_options_notes_and_evaluations_are_other_lines():
    rows = [
        *(row(0, 1.0), row(0, 1.0, 0.1), row(0, 1.0, note="x"), row(0, 1.0, dataset="y")),
        *(row(0, 1.0, split="train"), row(0, 1.0, evaluation="z"), row(0, 1.0, images=3)),
        row(0, 1.0, combination="older"),
    ]
    assert lines_of(rows) == [[one] for one in rows]


def test_the_baseline_of_a_difference_is_the_line_with_most_seeds_then_commits_in_common():
    rows = [
        *(row(0, 10.0, commit="a"), row(0, 20.0, commit="b"), row(1, 20.0, commit="b")),
        *(row(0, 30.0, commit="c"), row(1, 30.0, commit="c"), row(0, 31.0, 0.1, commit="b")),
    ]
    shown = as_markdown(rows, {"unfiltered": "unfiltered"}, beside=("base", lambda r: not r.options))
    assert [line[2] for line in cells(shown)[2:]] == ["", "", "", "+11.0"]


def test_lines_can_stand_best_first_and_unknown_combinations_last():
    rows = [row(0, 1.0), row(0, 3.0, options={"losses.separation": 0.5}), row(0, 2.0, 0.1)]
    measures = {"unfiltered": "unfiltered"}
    assert [line[1] for line in cells(as_markdown(rows, measures, best=["unfiltered"]))[2:]] == [
        "3.0",
        "2.0",
        "1.0",
    ]
    named = cells(as_markdown(rows, measures, [BASE, WITH]))
    assert [line[:2] for line in named[2:]] == [
        ["base", "nothing"],
        ["with it", "nothing"],
        ["another", "`separation 0.5`"],
    ]


def test_without_rows_it_is_said_and_rows_of_different_images_make_no_table():
    assert as_markdown([], MEASURES) == "No run is stored yet."
    rows = [row(0, 50.0, image_set="a"), row(1, 51.0), row(2, 52.0, image_set="a")]
    assert "51.0 (50.0 to 52.0)" in as_markdown(rows, MEASURES)
    with pytest.raises(ValueError, match="different images or classes, all called synthetic val"):
        as_markdown([*rows, row(3, 60.0, image_set="b")], MEASURES)


def project(root: Path, page: str, rows: list[ResultRow]) -> Path:
    """A project with one page, one recipe and stored rows."""
    (root / tables.ROWS).parent.mkdir(parents=True)
    (root / tables.RECIPES).mkdir(parents=True)
    (root / tables.ROWS).write_text(rows_to_text(rows))
    (root / "README.md").write_text(page)
    (root / tables.RECIPES / "demo.yaml").write_text("# Demo.\n# measured: ?\nkind: cosa\n")
    return root


def test_tables_between_marks_and_recipes_are_written_and_the_rest_is_left(tmp_path):
    page = "above\n<!-- table: demo -->\nold\n<!-- end -->\nbelow\n<!-- table: demo -->\n<!-- end -->\n"
    root = project(tmp_path, page, [row(0, 50.0), row(1, 52.0), row(0, 48.0, commit="z")])
    assert [path.name for path in tables.write_tables(root)] == ["README.md", "demo.yaml"]
    made = (root / "README.md").read_text()
    block = f"<!-- table: demo -->\n{tables.demo(read_rows(root / tables.ROWS))}\n<!-- end -->\n"
    assert made == f"above\n{block}below\n{block}"
    assert "| `demo` | 51.0 (50.0 to 52.0) | 0 1 | abc |" in made
    recipe = (root / tables.RECIPES / "demo.yaml").read_text().splitlines()
    assert recipe == [
        "# Demo.",
        "# measured: unfiltered 51.0 (50.0 to 52.0), synthetic val (150 images), seeds 0 1, commits abc",
        "kind: cosa",
    ]
    assert tables.write_tables(root) == []


def test_an_unknown_table_is_named(tmp_path):
    root = project(tmp_path, "<!-- table: nowhere -->\n<!-- end -->\n", [row(0, 50.0)])
    with pytest.raises(ValueError, match="no table 'nowhere'"):
        tables.write_tables(root)


def test_rows_are_stored_once(tmp_path):
    root = project(tmp_path, "", [row(0, 50.0)])
    more = tmp_path / "ablation.jsonl"
    more.write_text(rows_to_text([row(0, 50.0), row(1, 51.0), row(1, 51.0)]))
    assert tables.add_rows(root, [more]) == 1
    assert tables.add_rows(root, [more, more]) == 0
    assert read_rows(root / tables.ROWS) == [row(0, 50.0), row(1, 51.0)]


@pytest.mark.parametrize("path", tables.files(ROOT), ids=lambda path: path.name)
def test_the_tables_of_a_file_are_those_of_the_stored_rows(path):
    text = path.read_text()
    assert tables.regenerated(path, text, read_rows(ROOT / tables.ROWS)) == text, f"run {tables.COMMAND}"


def test_every_table_is_used_and_every_mark_is_one():
    pages = "".join(path.read_text() for path in PAGES)
    assert {name for _, name, _ in tables.MARKED.findall(pages)} == set(tables.TABLES)
    shown = re.findall(r"^<!-- table: .*$|^<!-- end -->$", pages, re.MULTILINE)
    assert len(shown) == 2 * len(tables.MARKED.findall(pages))


def unmarked_tables(text: str) -> list[str]:
    """Tables with figures under the name of a measurement that no command makes."""
    found = re.findall(r"(?:^\|.*\n)+", tables.MARKED.sub("", text), re.MULTILINE)
    return [table for table in found if MEASURED.search(table.split("\n")[0]) and FIGURE.search(table)]


def quoted_figures(text: str) -> set[str]:
    """Figures in paragraphs that speak of a measurement, outside tables and code."""
    text = re.sub(r"^```.*?^```$", "", tables.MARKED.sub("", text), flags=re.DOTALL | re.MULTILINE)
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if MEASURED.search(part)]
    return {figure for part in paragraphs for figure in FIGURE.findall(part)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_table_of_results_is_written_by_hand(path):
    assert unmarked_tables(path.read_text()) == []


def published() -> set[str]:
    with (ROOT / "cosa_dist/reports/published.csv").open(newline="") as file:
        return {f"{float(line['miou']):.1f}" for line in csv.DictReader(file)}


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: path.name)
def test_prose_quotes_published_figures_only(path):
    text = path.read_text()
    if path.suffix == ".yaml":
        text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        text = tables.MEASURED.sub("", text)
    assert quoted_figures(text) - published() == set()


def test_a_table_and_a_sentence_by_hand_are_found():
    table = "| recipe | mIoU |\n|---|---|\n| demo | 51.5 |\n"
    assert unmarked_tables(f"words\n\n{table}\nwords\n") == [table]
    assert unmarked_tables(f"<!-- table: demo -->\n{table}<!-- end -->\n") == []
    assert unmarked_tables("| step | s |\n|---|---|\n| one | 51.5 |\n") == []
    words = "The mIoU is 51.5.\n\n22.5 s a step.\n\n`unfiltered` 17.0 (1.25, 10.25, v10.2.1, 8.5 hours)\n"
    assert quoted_figures(words) == {"51.5", "17.0"}
