"""jobs/predict.py as a user meets it: every output, bad pictures, exit codes, Ray."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cosa_dist.data.decode import ORIENTATION, decode_mask, orientation_of
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.inference.export import export
from cosa_dist.inference.trained import load_trained
from tests.inference.conftest import photos, trained_run  # noqa: F401


@pytest.fixture
def call(run_job, trained_run):  # noqa: F811
    return partial(run_job, "jobs/predict.py", trained_run)


def test_every_output_of_a_tree(call, photos, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    code, shown, _ = call(photos, "--out", out, "--outputs", "all", "--scales", "1,0.5", "--batch-size", 2)
    assert code == 0
    assert "5 pictures predicted, 0 skipped, 1 other files passed by" in shown
    assert "pictures/s" in shown
    masks = sorted(path.relative_to(out / "masks").as_posix() for path in (out / "masks").rglob("*.png"))
    assert masks == [
        "four.png",
        "one.png",
        "street/far/drei mit Wörtern.png",
        "street/far/three.png",
        "street/two.png",
    ]
    assert len(list((out / "overlays").rglob("*.jpg"))) == 5
    mask = decode_mask((out / "masks/street/two.png").read_bytes())
    assert mask.shape == (50, 33)
    with np.load(out / "probabilities/street/two.npz") as archive:
        assert (archive["probabilities"].argmax(0) == mask).mean() > 0.99
    manifest = json.loads((out / "predictions.json").read_text())
    assert len(manifest["pictures"]) == 5
    assert manifest["protocol"] == "unfiltered"
    coco = json.loads((out / "segmentations.json").read_text())
    assert {image["file_name"] for image in coco["images"]} == {p["name"] for p in manifest["pictures"]}
    assert not list(out.rglob(".*"))


def test_predictions_on_shards_are_those_of_the_evaluation(call, trained_run, tmp_path):  # noqa: F811
    from cosa_dist.data.shards.split import open_split

    shards = trained_run.parent / "shards"
    for words, protocol in (((), "unfiltered"), (("--labels-from-classifier",), "predicted_labels")):
        assert call(shards, "--out", tmp_path / protocol, *words)[0] == 0
        split = open_split(shards, "val")
        right = total = 0
        for index in range(len(split)):
            record = split.record(index)
            truth = decode_mask(record.mask)
            mask = decode_mask((tmp_path / protocol / "masks" / f"{record.id}.png").read_bytes())
            right += int((mask == truth)[truth != 255].sum())
            total += int((truth != 255).sum())
        report = EvalReport.from_json((trained_run / "report_online.json").read_text())
        assert 100 * right / total == pytest.approx(report.scores[protocol].pixel_accuracy, abs=0.01)


def test_bad_pictures_are_listed_and_the_others_done(call, photos, tmp_path):  # noqa: F811
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "empty.png").touch()
    code, shown, errors = call(photos, "--out", tmp_path / "out")
    assert code == 3
    assert "5 pictures predicted, 2 skipped" in shown
    lines = [line for line in errors.splitlines() if line.startswith("skipped ")]
    assert [line.rpartition("/")[2] for line in lines] == [
        "broken.jpg: image cannot be decoded: not a known picture format",
        "empty.png: file is empty (0 bytes); copy it again",
    ]
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["skipped"]) == 2
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 5


def test_rotation_by_exif_is_not_applied_as_in_training_and_carried_on(call, tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture.save(tmp_path / f"{orientation}.jpg", exif=exif)
    pictures = [tmp_path / f"{orientation}.jpg" for orientation in (1, 3, 6)]
    assert call(*pictures, "--out", tmp_path / "out", "--outputs", "masks,overlays")[0] == 0
    for orientation in (1, 3, 6):
        for name in (f"masks/{orientation}.png", f"overlays/{orientation}.jpg"):
            with Image.open(tmp_path / "out" / name) as written:
                assert (written.size, orientation_of(written)) == ((40, 20), orientation)


def test_a_size_that_has_no_effect_is_refused(run_job, photos, trained_run, tmp_path):  # noqa: F811
    run = tmp_path / "exported"
    export(load_trained(trained_run, "", "", torch.device("cpu")), run, ["weights"])
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["evaluation"]["geometry"] = "own"
    file.write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    code, _, errors = run_job("jobs/predict.py", run, photos, "--out", out, "--size", 64)
    assert code == 2
    assert "--size 64: this run sees pictures at their own size (evaluation.geometry own)" in errors
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--outputs", "mask"], "--outputs mask: choose some of masks, overlays"),
        (["--scales", "1,x"], "--scales 1,x: give numbers"),
        (["--scales", "-1"], "at most 4"),
        (["--batch-size", "-2"], "--batch-size -2: must be"),
        (["--device", "tpu9"], "--device tpu9: give auto"),
        (["--device", "cuda:7"], "this machine has"),
        (["--checkpoint", "99"], "there are: step-00000003"),
        (["--network", "onlin"], "did you mean online?"),
        (["--voc-server"], "VOC's 20 classes"),
        (["--colour", "red"], "unknown option --colour"),
    ],
)
def test_a_wrong_option_is_one_line_and_makes_nothing(call, photos, tmp_path, words, part):  # noqa: F811
    code, _, errors = call(photos, "--out", tmp_path / "out", *words)
    assert code == 2
    assert part in errors
    assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_network_says_what_is_wanted(run_job, photos, tmp_path):  # noqa: F811
    done = run_job("jobs/predict.py", photos, photos, "--out", tmp_path / "out")
    assert done.code == 2
    assert "holds no trained network; give a run folder" in done.err


def test_a_folder_that_cannot_be_written_to_ends_it(call, photos, tmp_path):  # noqa: F811
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").write_text("a file in the way")
    code, _, errors = call(photos, "--out", tmp_path / "out")
    assert code == 1
    assert "prediction failed: cannot write" in errors


@pytest.mark.slow
@pytest.mark.integration
def test_workers_over_ray_write_the_same_files(call, ray_nodes, photos, tmp_path):  # noqa: F811
    (photos / "broken.jpg").write_bytes(b"no picture")
    assert call(photos, "--out", tmp_path / "here", "--outputs", "masks,rle")[0] == 3
    words = ("--outputs", "masks,rle", "--workers", 2, "--batch-size", 2)
    with ray_nodes.joined():
        assert call(photos, "--out", tmp_path / "ray", *words)[0] == 3
    here, over_ray = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("here", "ray")
    )
    assert here == over_ray
