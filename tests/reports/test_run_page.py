"""The page of a run: what it shows, that data cannot inject markup, and a real browser on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from cosa_dist.atomic import atomic_write
from cosa_dist.config.schema import EvaluationConfig
from cosa_dist.data.reading.samples import EvalSample
from cosa_dist.inference.segmentation import Segmenting
from cosa_dist.reports.run_analysis import (
    CheckpointSnapshot,
    ErrorAnalysis,
    Evolution,
    FollowedImage,
    analyse_errors,
    heat_over,
    image_score,
)
from cosa_dist.reports.run_page import read_run, row_shares, run_page
from tests.evaluation.colour_network import ColourNetwork, colour_sample
from tests.reports.chromium import browser_page
from tests.reports.leaderboard_example import report

COLOURS = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 255, 0), 3: (0, 0, 255)}


def striped(name: str, colours: list[int], mask: list[int] | None) -> EvalSample:
    """Stripes of four pixels in the colours of these classes, with a mask of these."""
    image = torch.cat(
        [torch.tensor(COLOURS[c], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 4) for c in colours], 2
    )
    truth = None
    if mask is not None:
        truth = torch.tensor(mask, dtype=torch.uint8).repeat_interleave(4).expand(8, -1).contiguous()
    return colour_sample(name, image, truth, [c for c in mask or [] if 0 < c < 4])


@pytest.fixture
def errors() -> ErrorAnalysis:
    samples = [
        striped("right", [1, 0], [1, 0]),
        striped("half", [1, 1], [1, 2]),
        striped("wrong", [3, 3], [1, 1]),
        striped("no mask", [1, 1], None),
        striped("ignored", [1, 1], [255, 255]),
    ]
    settings = EvaluationConfig(scales=(1.0,), batch_size=2).model_copy(update={"size": 8})
    segmenting = Segmenting(ColourNetwork().eval(), settings, torch.device("cpu"))
    return analyse_errors(segmenting, samples, 4, shown=2)


@pytest.fixture
def evolution() -> Evolution:
    pixels = Image.new("RGB", (12, 8), (0, 0, 255))
    snapshots = []
    for step, value in ((2, 0.0), (4, 1.0)):
        cam = heat_over(pixels, torch.full((8, 12), value))
        snapshots.append(CheckpointSnapshot(step, cam, torch.full((8, 12), step, dtype=torch.uint8).numpy()))
    followed = FollowedImage("x<b>1", ("cat", "dog"), pixels, tuple(snapshots))
    return Evolution((followed,), ("step-00000003: damaged",))


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "a <b>run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: '</pre><script>alert(1)</script>'\n")
    atomic_write(folder / "run.json", json.dumps({"tracking_uri": "", "run_id": "", "finished": True}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step, total in ((1, 3.0), (2, 2.0), (2, 1.5), (3, float("nan"))):
            values = {"train/total": total, "train/threshold_low": 0.2, "train/learning_rate": 0.1}
            values |= {"val/online/miou_unfiltered": 10.0 * step, "final/miou_unfiltered": 1.0}
            shown = {key: "NaN" if value != value else value for key, value in values.items()}
            file.write(json.dumps({"time_ms": step, "step": step, "metrics": shown}) + "\n")
    (folder / "report_online.json").write_text(report(30.5).to_json())
    (folder / "pictures").mkdir()
    Image.new("RGB", (50, 20), "red").save(folder / "pictures" / "000_first.png")
    return folder


def embedded(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found.group(1))


def test_images_are_judged_and_sorted_by_hand_computed_scores(errors):
    assert errors.images == 4
    assert [(one.id, one.score) for one in errors.worst] == [("wrong", 0.0), ("half", 25.0)]
    assert [(one.id, one.score) for one in errors.best] == [("right", 100.0)]
    # Rows are true classes; stripes have 32 pixels.
    assert errors.confusion.tolist() == [[32, 0, 0, 0], [0, 64, 0, 64], [0, 32, 0, 0], [0, 0, 0, 0]]


def test_shares_are_of_the_true_class(errors):
    shares = row_shares(errors.confusion)
    assert shares[1] == [0, 50, 0, 50]
    assert shares[3] == [None] * 4


def test_a_predicted_class_that_is_not_there_counts_in_an_images_score():
    assert image_score(torch.tensor([[10, 0, 0], [0, 5, 5], [0, 0, 0]])) == pytest.approx(100 * 1.5 / 3)


def test_the_page_holds_the_runs_numbers_and_nothing_from_elsewhere(run, errors):
    text = run_page(read_run(run), errors)
    data = embedded(text)
    assert data["curves"]["train/total"] == {"step": [1, 2, 3], "value": [3.0, 1.5, None]}
    assert data["losses"] == ["train/total"]
    assert data["thresholds"] == ["train/threshold_low"]
    assert data["scores"] == ["val/online/miou_unfiltered"]
    assert data["iou"]["online"]["unfiltered"] == [90.0, 29.5, None]
    assert "30.50" in text
    assert "<script>alert" not in text
    assert "<b>run" not in text
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', text)
    assert text.index("wrong: 0.0") < text.index("half: 25.0") < text.index("right: 100.0")


def test_heat_is_mixed_into_the_image_in_known_colours():
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    cold, hot = heat_over(image, torch.tensor([[-1.0, 2.0]])).getdata()
    # turbo goes from (48, 18, 59) to (122, 4, 3); 0.4 of the image is left.
    assert cold == pytest.approx([0.4 * 100 + 0.6 * value for value in (48, 18, 59)], abs=1)
    assert hot == pytest.approx([0.4 * 100 + 0.6 * value for value in (122, 4, 3)], abs=1)


def test_steps_stand_side_by_side_for_each_image(run, evolution):
    text = run_page(read_run(run), "no masks", evolution)
    part = text[text.index('id="evolution"') : text.index('id="pictures"')]
    assert "the checkpoints that the run kept (step 2, 4)" in part
    assert "Left out: step-00000003: damaged" in part
    assert "x&lt;b&gt;1: cat, dog" in part
    assert part.index("step 2<") < part.index("step 4<")
    assert part.count("data:image/jpeg") == 1 + 2 * 2
    assert "Not shown: no masks" in text
    assert "Not shown: no room" in run_page(read_run(run), evolution="no room")


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("name: new\n")
    text = run_page(read_run(tmp_path), "no checkpoint yet")
    assert "Not finished" in text
    assert "Not shown: no checkpoint yet" in text
    assert text.count("No scores: they come at the end.") == 2
    with pytest.raises(ValueError, match="is no run folder"):
        read_run(tmp_path / "nothing")


def test_a_run_on_images_without_masks_has_no_empty_tables(run):
    unmeasured = {"miou": None, "pixel_accuracy": None, "mean_accuracy": None, "iou": [None] * 4}
    content = json.loads((run / "report_online.json").read_text())
    content["scores"] = {name: score | unmeasured for name, score in content["scores"].items()}
    (run / "report_online.json").write_text(json.dumps(content))
    text = run_page(read_run(run))
    assert text.count("No scores: no class occurs in the masks (only background or ignored pixels).") == 2
    assert "<td>unfiltered</td>" not in text
    assert "left out without a mask; image classifier mAP" in text


@pytest.mark.nightly
@pytest.mark.integration
def test_a_browser_draws_everything_without_an_error(run, errors, evolution, tmp_path):
    page = tmp_path / "report.html"
    atomic_write(page, run_page(read_run(run), errors, evolution))
    with browser_page() as (tab, wrong):
        tab.goto(page.as_uri())
        for plot in ("losses", "scores", "thresholds", "other"):
            assert tab.locator(f"#plot-{plot} .scatterlayer .trace").count() == 1, plot
        assert tab.locator("#plot-classes .barlayer .trace").count() == 1
        assert tab.locator("#plot-confusion .heatmaplayer").count() == 1
        assert tab.locator("#measurement").input_value() == "unfiltered"
        images = tab.locator("img")
        assert images.count() == 3 * 3 + 1 + 5
        boxes = [figure.bounding_box() for figure in tab.locator(".steps figure").all()]
        assert len({box["y"] for box in boxes}) == 1
        assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
        assert all(image.evaluate("i => i.complete && i.naturalWidth > 0") for image in images.all())
        assert "alert(1)" in tab.locator("#configuration pre").inner_text()
        tab.screenshot(path=tmp_path / "run.png", full_page=True)
    assert wrong == []
