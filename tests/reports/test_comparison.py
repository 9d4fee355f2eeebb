"""Comparisons of runs on the same images: against a plain loop, by hand, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
import torch

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.evaluation.confusion import iou_per_class, mean_iou
from cosa_dist.evaluation.evaluator import Evaluator
from cosa_dist.evaluation.intervals import RESAMPLES, SEED, ImageCounts
from cosa_dist.evaluation.report import EvalReport, SegmentationScore, as_text
from cosa_dist.reports import comparison
from cosa_dist.reports.comparison import compare, comparison_cells, comparison_json, reading, scored_report

NAMES = ("cat", "dog", "rail")
SETTINGS = {"words": "64 square, one view", "cam_background": 0.5, "crf": None, "batch_size": 4}
MEASURED = ("unfiltered", "unfiltered_crf", "cam_true_labels", "aux_cam_true_labels")


def confusions(seed: int, images: int = 12) -> np.ndarray:
    """Confusion matrices `[N, 4, 4]` of the same masks for every seed; the last class is in no mask."""
    truth, random = np.random.default_rng(99), np.random.default_rng(seed)
    pixels = truth.integers(1, 60, (images, 3)) * (truth.random((images, 3)) < 0.7)
    tables = np.zeros((images, 4, 4), dtype=np.int64)
    for table, row in zip(tables, pixels, strict=True):
        for true, count in enumerate(row):
            table[true] = random.multinomial(count, random.dirichlet((2, 2, 2, 0.5)))
    return tables


def write_run(folder: Path, tables: np.ndarray, network: str = "online", split: str = "", **changes) -> Path:
    """A run folder with a report and its counts, the same under all measurements; `changes` of the report."""
    sums = [tables.sum(2), np.diagonal(tables, axis1=1, axis2=2), tables.sum(1)]
    columns = np.stack([sums[0], *[each for _ in MEASURED for each in sums[1:]]], axis=1)
    counts = ImageCounts.of_table([f"{n:03d}" for n in range(len(tables))], MEASURED, columns)
    total = torch.from_numpy(tables.sum(0))
    iou = tuple(None if value != value else 100 * value for value in iou_per_class(total).tolist())
    score = SegmentationScore(100 * mean_iou(total), 0.0, 0.0, iou)
    values = {"settings": SETTINGS, "image_set": "ab" * 8, "benchmark": "", "counts": counts} | changes
    report = EvalReport(
        network, NAMES, len(tables), 0, dict.fromkeys(MEASURED, score), None, None, None, **values
    )
    files = RunFolder(folder)
    report.with_intervals().write(files.report_file(network, split), files.counts_file(network, split))
    return folder


def plain_scores(sides: list[list[np.ndarray]]) -> np.ndarray:
    """Each side's mean mIoU and mean IoU of dog, `[2, 2, R]`, by a loop over resamples and runs."""
    random = np.random.default_rng(SEED)
    images = len(sides[0][0])
    found: list[list[list[float]]] = []
    for _ in range(RESAMPLES):
        drawn = random.integers(images, size=images)
        rows = []
        for side in sides:
            totals = [torch.from_numpy(tables[drawn].sum(0)) for tables in side]
            dog = [float(iou_per_class(total)[2]) if total[2].sum() else float("nan") for total in totals]
            rows.append([sum(map(mean_iou, totals)) / len(totals), sum(dog) / len(dog)])
        found.append(rows)
    return 100 * np.array(found).transpose(1, 2, 0)


def middle(values: np.ndarray) -> pytest.approx:
    return pytest.approx(tuple(np.nanpercentile(values, [2.5, 97.5])), abs=1e-9)


@pytest.mark.parametrize("seeds", [((1,), (2,)), ((1, 3, 4), (2, 5))])
def test_both_sides_and_their_difference_equal_a_plain_loop(tmp_path, seeds):
    tables = [[confusions(seed) for seed in side] for side in seeds]
    runs = [[write_run(tmp_path / f"r{s}", confusions(s)) for s in side] for side in seeds]
    found = compare(*runs)
    plain = plain_scores(tables)
    for place, side in enumerate(found.sides):
        whole = [100 * mean_iou(torch.from_numpy(one.sum(0))) for one in tables[place]]
        assert [score.value for score in side.scores] == pytest.approx(whole)
        assert side.mean.value == pytest.approx(sum(whole) / len(whole))
        assert side.mean.interval == middle(plain[place, 0])
        assert side.standard_deviation == (None if len(whole) == 1 else pytest.approx(stdev(whole)))
        assert found.classes["dog"][place].interval == middle(plain[place, 1])
    difference = plain[1] - plain[0]
    assert found.difference.value == pytest.approx(found.sides[1].mean.value - found.sides[0].mean.value)
    assert found.difference.interval == middle(difference[0])
    assert found.classes["dog"][2].interval == middle(difference[1])
    assert list(found.classes) == ["background", "cat", "dog"]  # the rail is in no mask
    assert found.sides[0].scores[0].interval == scored_report(runs[0][0]).scores["unfiltered"].interval


def test_a_difference_that_every_image_shows_is_sure_where_the_scores_are_not(tmp_path):
    one = confusions(1, images=8)
    two = one.copy()
    for table in two:  # a fifth of each image's wrong pixels become right
        for true in range(4):
            wrong = table[true].copy()
            wrong[true] = 0
            moved = wrong // 5
            table[true] -= moved
            table[true, true] += moved.sum()
    found = compare([write_run(tmp_path / "one", one)], [write_run(tmp_path / "two", two)])
    low, high = found.difference.interval
    assert 0 < low < found.difference.value < high
    spans = [side.mean.interval for side in found.sides]
    assert spans[0][1] > spans[1][0]  # the scores' own intervals overlap
    assert high - low < min(span[1] - span[0] for span in spans)
    assert "difference does not hold 0" in reading(found)
    same = compare([tmp_path / "one"], [tmp_path / "one"])
    assert (same.difference.value, same.difference.interval) == (0, (0, 0))
    assert "difference holds 0" in reading(same)


def test_a_class_in_too_few_images_leaves_no_interval_and_is_named(tmp_path):
    tables = [confusions(seed) for seed in (1, 2)]
    for table in tables:
        table[3:, 2] = 0  # dog in the first images only
    found = compare(*([write_run(tmp_path / f"r{seed}", one)] for seed, one in enumerate(tables)))
    assert found.rare == ("dog",)
    assert found.difference.value is not None
    figures = [found.difference, *(side.mean for side in found.sides), *found.sides[0].scores]
    assert [figure.interval for figure in figures] == 4 * [None]
    assert {name: figures[2].interval is None for name, figures in found.classes.items()} == {
        "background": False,
        "cat": False,
        "dog": True,
    }
    assert "The interval of the difference does not exist: fewer than 5 images have dog." in reading(found)
    report = scored_report(tmp_path / "r0")
    assert (report.rare_classes, report.scores["unfiltered"].interval) == (("dog",), None)
    assert "no 95 % interval: fewer than 5 images have dog" in as_text([report])


def test_the_better_network_under_the_measurement_is_taken_unless_one_is_named(tmp_path):
    run = write_run(tmp_path / "run", confusions(1))
    write_run(run, confusions(2), "assignment")
    scores = {name: scored_report(run, network=name).miou() for name in ("online", "assignment")}
    assert scores["online"] != scores["assignment"]
    better = max(scores, key=lambda name: scores[name])
    assert scored_report(run).network == better
    worse = min(scores, key=lambda name: scores[name])
    assert compare([run], [run], network=worse).sides[0].networks == (worse,)
    write_run(run, confusions(3), split="val_part")
    assert compare([run], [run], split="val_part").sides[0].networks == ("online",)
    with pytest.raises(ConfigError, match=r"evaluation_val_NETWORK\.json is missing"):
        compare([run], [run], split="val")


def test_reports_have_the_settings_that_are_compared():
    names = {name for part in comparison.SETTINGS.values() for name in part}
    assert names <= set(Evaluator(NAMES, EvaluationConfig())._settings())


def test_only_settings_that_the_measurement_depends_on_matter(tmp_path):
    one = write_run(tmp_path / "one", confusions(1))
    other = SETTINGS | {"batch_size": 1, "crf": {"iterations": 10}, "cam_background": 0.4}
    two = write_run(tmp_path / "two", confusions(2), settings=other)
    assert compare([one], [two]).difference.value
    crf = r"other settings \(crf: None, and {'iterations': 10}\)"
    for measurement, said in {
        "unfiltered_crf": crf,
        "cam_true_labels": r"cam_background: 0\.5, and 0\.4",
    }.items():
        with pytest.raises(ConfigError, match=said):
            compare([one], [two], measurement)
    last = {"aux_cam_last_scale_only": True, "size": 64, "flip": False, "merging": "mean"}
    grid = {"merge_at": "grid", "words": "as an earlier version had it"}
    four, five, six = (
        write_run(tmp_path / f"order{number}", confusions(2), settings=SETTINGS | last | changes)
        for number, changes in enumerate(
            ({"scales": [1.0, 0.5]}, {"scales": [0.5, 1.0]}, {"scales": [0.5, 1.0], **grid})
        )
    )
    assert compare([four], [five], "cam_true_labels").difference.value == 0
    with pytest.raises(ConfigError, match=r"aux_cam_last_scale_only: scale 0\.5, and scale 1\)"):
        compare([four], [five], "aux_cam_true_labels")
    with pytest.raises(ConfigError, match=r"mean, and 64 .*, mean, merged at the grid of scale 0\.5\)"):
        compare([five], [six])
    three = write_run(tmp_path / "three", confusions(2), settings=SETTINGS | {"words": "96 square, one view"})
    with pytest.raises(
        ConfigError, match=r"one and .*three cannot be compared: .*seen: 64 square, one view, and 96 "
    ):
        compare([one, two], [three])


def spoil(run: Path, how: str) -> None:
    files = RunFolder(run)
    report, counts = files.report_file("online"), files.counts_file("online")
    if how == "counts missing":
        counts.unlink()
    elif how == "counts of another":
        write_run(run / "x", confusions(3))
        (run / "x" / counts.name).replace(counts)
    elif how == "counts damaged":
        counts.write_bytes(counts.read_bytes()[:200])
    elif how == "report damaged":
        report.write_text("{}")
    elif how == "no run":
        report.unlink()
    elif how == "classes":
        report.write_text(report.read_text().replace("rail", "track"))
    elif how == "images":
        write_run(run, confusions(2, images=9))
    elif how == "masks":
        write_run(run, 2 * confusions(2))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "counts missing",
            r"report_online\.npz is missing, as for a run of an earlier version: run jobs/evaluate",
        ),
        ("counts of another", r"report_online\.npz is of another evaluation than the report beside it"),
        ("counts damaged", r"report_online\.npz is damaged"),
        ("report damaged", r"report_online\.json is damaged"),
        ("no run", r"report_NETWORK\.json is missing: give a run folder"),
        ("classes", r"they have other classes \(cat, dog, rail and cat, dog, track\)"),
        ("images", r"evaluated on other images \(12 and 9, of which 9 are the same\)"),
        ("masks", "their images have other true masks"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, how, said):
    one, two = (write_run(tmp_path / name, confusions(seed)) for seed, name in enumerate(("one", "two"), 1))
    spoil(two, how)
    with pytest.raises(ValueError, match=said) as caught:
        compare([one], [two])
    assert "\n" not in str(caught.value)


def test_a_score_that_a_run_lacks_is_named(tmp_path):
    run = write_run(tmp_path / "one", confusions(1))
    with pytest.raises(
        ConfigError, match="has no mIoU 'true_labels'; it has unfiltered, unfiltered_crf, cam_true"
    ):
        compare([run], [run], "true_labels")
    report = EvalReport.read(RunFolder(run).report_file("online"))
    none = {name: replace(score, miou=None) for name, score in report.scores.items()}
    RunFolder(run).report_file("online").write_text(replace(report, scores=none).to_json())
    with pytest.raises(ConfigError, match="it has none"):
        scored_report(run)


def test_views_say_the_same(tmp_path):
    runs = [write_run(tmp_path / f"r{seed}", confusions(seed)) for seed in (1, 2, 3)]
    found = compare(runs[:1], runs[1:])
    content = json.loads(comparison_json(found))
    assert content["intervals"] == {"level": 0.95, "resamples": 2000, "seed": 0, "over": "images"}
    assert content["difference"]["value"] == found.difference.value
    assert content["sides"][1]["runs"] == [str(run) for run in runs[1:]]
    sides, classes = comparison_cells(found)
    assert sides.title == "unfiltered mIoU (set abababab, 12 images)"
    assert [row[1] for row in sides.rows][:3] == ["r1", "r2", "r3"]
    assert sides.rows[3][1] == f"mean of 2 runs, SD {found.sides[1].standard_deviation:.1f}"
    assert sides.rows[4][3] == f"{found.difference.value:+.1f}"
    assert [row[0] for row in classes.rows] == list(found.classes)
    assert "is unknown (one run) on the first side" in reading(found)
    assert reading(compare(runs[:1], runs[1:2])).endswith("with one run a side nothing is known of it.")
    zero = comparison_cells(compare(runs[:1], runs[:1]))[0].rows[-1]
    assert zero[3:] == ["+0.0", "+0.0 to +0.0"]


@pytest.fixture
def call(run_job):
    return partial(run_job, "jobs/compare.py")


def test_the_job_prints_both_sides_and_writes_json(call, tmp_path):
    runs = [write_run(tmp_path / f"r{seed}", confusions(seed)) for seed in (1, 2, 3)]
    code, shown, errors = call(*runs[:2], "--json", tmp_path / "out" / "found.json")
    assert (code, errors) == (0, "")
    assert "second - first" in shown
    assert "Seeds are a second source of spread" in shown
    two = json.loads((tmp_path / "out" / "found.json").read_text())
    assert two["difference"] == json.loads(comparison_json(compare(runs[:1], runs[1:2])))["difference"]
    code, shown, _ = call(runs[0], "--with", *runs[1:], "--protocol", "cam_true_labels")
    assert code == 0
    assert "cam_true_labels mIoU" in shown
    assert "mean of 2 runs" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "1 runs: give two"),
        (["one", "two", "three"], "3 runs: give two"),
        (["one", "one/", "--with", "two"], "has the same run twice"),
        (["one", "two", "--sead", "3"], "unknown option --sead"),
        (["one", "two"], "report_NETWORK.json is missing"),
    ],
)
def test_the_job_refuses_in_one_line(call, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, shown, errors = call(*words)
    assert (code, shown, errors.count("\n")) == (2, "", 1)
    assert said in errors
