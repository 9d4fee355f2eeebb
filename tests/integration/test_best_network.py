"""Which checkpoint and network are the best, and that every job takes them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosa_dist.atomic import atomic_write
from cosa_dist.config.loading import to_yaml
from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.data.sources.synthetic import synthetic_info
from cosa_dist.distributed.labelling import run as labelling_run
from cosa_dist.distributed.run_folder import RunFolder, RunNote
from cosa_dist.distributed.worker import run_worker
from cosa_dist.evaluation.evaluator import CAM_MEASUREMENTS, Evaluator
from cosa_dist.evaluation.protocols import PROTOCOLS
from cosa_dist.evaluation.report import EvalReport, SegmentationScore
from cosa_dist.inference.trained import choose, load_trained
from cosa_dist.training.checkpoint import save_checkpoint
from cosa_dist.training.checkpoint_files import CheckpointError, Score
from cosa_dist.training.state import build_state
from jobs import convert_weights, evaluate, export, predict, report
from tests.inference.conftest import photos  # noqa: F401
from tests.integration.small_run import curve, make_shards, small_config, task_of
from tests.integration.test_segmenter_run import segmenter_config

CPU = torch.device("cpu")
NAMES = synthetic_info().class_names
LIMITED = {"training": {"steps": 10, "keep_checkpoints": 2}, "evaluation": {"every": 5, "limit": 4}}
Part = tuple[float | None, float | None]
"""mIoU of the online and the assignment network on the images so far"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "synthetic")


def reports_of(images: int, mious: Part, networks: Sequence[str] = ("online", "assignment")):
    found = {}
    for network, miou in zip(networks, mious, strict=True):
        iou = (miou,) * (len(NAMES) + 1)
        scores = {key: SegmentationScore(miou, miou, miou, iou) for key in (*PROTOCOLS, *CAM_MEASUREMENTS)}
        found[network] = EvalReport(network, NAMES, images, 0, scores, None, None, None)
    return found


def run_scored(monkeypatch, shards: Path, folder: Path, evaluations: list[list[Part]], **sections) -> Path:
    """Train the tiny run whose evaluations have these scores, part by part of each; return its folder."""
    coming = iter(evaluations)

    def scripted(evaluator, networks, parts):
        found = next(coming)
        assert len(parts) == len(found)
        return [reports_of(images, mious) for images, mious in zip((4, 11), found, strict=False)]

    monkeypatch.setattr(Evaluator, "evaluate_parts", scripted)
    config = small_config(shards, folder.parent, folder.name, **{**LIMITED, **sections})
    atomic_write(folder / "config.yaml", to_yaml(config))
    run_worker(task_of(config, folder, 4))
    assert next(coming, None) is None
    return folder


@pytest.mark.parametrize(
    ("evaluations", "best"),
    [
        # Step 5 on 4 images; step 10 on the same 4, then on all 11.
        ([[(40.0, 50.0)], [(55.0, 45.0), (30.0, 20.0)]], (10, Score(55.0, "online", 4))),
        ([[(40.0, 50.0)], [(45.0, 44.0), (90.0, 91.0)]], (5, Score(50.0, "assignment", 4))),
        ([[(40.0, 50.0)], [(50.0, 10.0), (60.0, 60.0)]], (5, Score(50.0, "assignment", 4))),
        ([[(None, None)], [(None, 0.0), (10.0, 20.0)]], (10, Score(0.0, "assignment", 4))),
        ([[(None, None)], [(None, None), (None, None)]], None),
    ],
)
def test_checkpoints_are_compared_on_the_same_images(monkeypatch, shards, tmp_path, evaluations, best):
    folder = run_scored(monkeypatch, shards, tmp_path / "run", evaluations)
    noted = folder / "checkpoints" / "best.json"
    last = [score for score in evaluations[1][1] if score is not None]
    assert curve(folder, "final/miou_unfiltered") == ([max(last)] if last else [])
    if best is None:
        assert not noted.exists()
        chosen = choose(folder)
        assert (chosen.step, chosen.network) == (10, "online")
        assert str(chosen) == (
            "network online of step 10 (newest checkpoint; the run has no scores to choose by)"
        )
        return
    step, score = best
    assert json.loads(noted.read_text()) == {"checkpoint": f"step-{step:08d}", "score": vars(score)}
    chosen = choose(folder)
    assert (chosen.step, chosen.network) == (step, score.network)
    assert str(chosen).endswith(f"(best checkpoint; best of the run: {score})")


def test_without_a_limit_the_last_evaluation_is_compared_on_all_images(monkeypatch, shards, tmp_path):
    scores = [[(40.0, 50.0)], [(51.0, 45.0)]]
    evaluation = {"every": 5, "limit": 0}
    folder = run_scored(monkeypatch, shards, tmp_path / "run", scores, evaluation=evaluation)
    assert choose(folder).step == 10
    assert curve(folder, "val/miou_unfiltered") == [50.0]
    assert curve(folder, "final/miou_unfiltered") == [51.0]


def test_a_real_last_evaluation_scores_the_first_images_as_those_before_it(shards, tmp_path):
    evaluation = {"every": 5, "limit": 4, "scales": [1.0, 0.5]}
    config = small_config(shards, tmp_path, "run", evaluation=evaluation)
    run_worker(task_of(config, tmp_path / "run", 4))
    assert curve(tmp_path / "run", "val/online/images") == [4, 4]
    assert curve(tmp_path / "run", "final/online/images") == [11]
    model = load_trained(tmp_path / "run", "newest", "online", CPU)
    from cosa_dist.data.reading.loader import EvaluationLoader
    from cosa_dist.data.shards.split import open_split

    first = EvaluationLoader(open_split(shards, "val"), limit=4)
    alone = Evaluator.of_run(config, NAMES).evaluate({"online": model.network}, first)
    assert curve(tmp_path / "run", "val/online/miou_unfiltered")[1] == alone["online"].miou()


@pytest.fixture(scope="module")
def assigned(shards, tmp_path_factory):
    """A run whose best checkpoint, by its assignment network, is not the newest one."""
    with pytest.MonkeyPatch.context() as patch:
        scores = [[(40.0, 50.0)], [(45.0, 44.0), (60.0, 40.0)]]
        folder = run_scored(patch, shards, tmp_path_factory.mktemp("runs") / "assigned", scores)
    RunFolder(folder).write_note(RunNote("", "", finished=True))
    return folder


SAID = "network assignment of step 5 (best checkpoint; best of the run: unfiltered mIoU 50.00 on 4 images)"
CASES = [
    (("", ""), 5, "assignment"),
    (("best", ""), 5, "assignment"),
    (("newest", ""), 10, "assignment"),
    (("10", ""), 10, "assignment"),
    (("", "online"), 5, "online"),
    (("newest", "online"), 10, "online"),
]


@pytest.mark.parametrize(("asked", "step", "network"), CASES)
def test_one_function_chooses_and_its_weights_are_loaded(assigned, asked, step, network):
    chosen = choose(assigned, *asked)
    assert (chosen.step, chosen.network) == (step, network)
    model = load_trained(assigned, *asked, CPU)
    assert (model.checkpoint, model.which) == (f"step-{step:08d}", network)
    assert model.source == str(chosen)
    stored = load_file(assigned / "checkpoints" / model.checkpoint / f"{network}.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in model.network.state_dict().items())


def call(monkeypatch, capsys, job, *words) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", [job.__name__, *map(str, words)])
    code = job.main()
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_every_job_takes_them_and_says_so(assigned, tmp_path, monkeypatch, capsys, photos):  # noqa: F811
    def done(job, *words) -> str:
        code, out, err = call(monkeypatch, capsys, job, *words)
        assert code == 0, err
        return out

    assert SAID in done(predict, assigned, photos, "--out", tmp_path / "masks")
    made_by = json.loads((tmp_path / "masks/predictions.json").read_text())["model"]
    assert made_by == {"run": "assigned", "checkpoint": "step-00000005", "network": "assignment"}
    assert SAID in done(export, assigned, "--out", tmp_path / "export")
    assert SAID in done(report, assigned, "--images", 2, "--out", tmp_path / "page.html")
    assert "that of assignment, unfiltered" in (tmp_path / "page.html").read_text()
    shown = done(evaluate, assigned, "--out", tmp_path / "scores", "--limit", 2)
    assert f"step 5; other jobs take {SAID}" in shown
    assert len(list((tmp_path / "scores").glob("*.json"))) == 2
    shown = done(evaluate, assigned, "--out", tmp_path / "one", "--limit", 2, "--network", "online")
    assert "network online of step 5 (best checkpoint; network as asked for)" in shown
    assert [path.name for path in (tmp_path / "one").glob("*.json")] == ["evaluation_val_online.json"]

    stored = load_file(assigned / "checkpoints/step-00000005/assignment.safetensors")
    exported = load_file(tmp_path / "export/model.safetensors")
    assert all(torch.equal(value, exported[key]) for key, value in stored.items())
    shown = done(predict, tmp_path / "export", photos, "--out", tmp_path / "again")
    assert "network assignment of step-00000005, exported" in shown
    assert json.loads((tmp_path / "again/predictions.json").read_text())["model"]["network"] == "assignment"


@pytest.mark.parametrize("words", [("--network", "online"), ("--checkpoint", "newest")])
def test_an_exported_folder_leaves_nothing_to_choose(assigned, tmp_path, monkeypatch, capsys, words):
    assert call(monkeypatch, capsys, export, assigned, "--out", tmp_path / "export")[0] == 0
    again = ("--out", tmp_path / "again", *words)
    code, _, errors = call(monkeypatch, capsys, export, tmp_path / "export", *again)
    assert code == 2
    assert "holds one network (network assignment of step-00000005, exported)" in errors


def test_weights_are_converted_from_a_run_folder(assigned, tmp_path, capsys):
    target = tmp_path / "network.safetensors"
    assert convert_weights.main([str(assigned), str(target)]) == 0
    shown = capsys.readouterr().out
    assert SAID in shown
    assert "assignment network of" in shown
    assert "after 5 steps" in shown
    stored = load_file(assigned / "checkpoints/step-00000005/assignment.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in load_file(target).items())
    words = [str(target), str(tmp_path / "other.safetensors"), "--network", "online"]
    assert convert_weights.main(words) == 2
    assert "choose from a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "masks", "step", "network"),
    [
        ("", {}, 5, "assignment"),
        ("newest", {}, 10, "assignment"),
        ("", {"network": "online"}, 5, "online"),
    ],
)
def test_pseudo_masks_are_made_by_them(assigned, tmp_path, monkeypatch, asked, masks, step, network):
    monkeypatch.setattr(labelling_run, "label_split", lambda task, *rest: task)
    monkeypatch.setattr(labelling_run, "_record", lambda *words: None)
    task = labelling_run.run_labelling(
        assigned, tmp_path / "masks", PseudoMaskConfig(**masks), {}, checkpoint=asked
    )
    assert (task.checkpoint, task.network) == (str(step), network)


def copied(assigned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(assigned, tmp_path / "copied"))


def test_a_folder_of_an_earlier_version_goes_by_its_last_evaluation(assigned, tmp_path):
    folder = copied(assigned, tmp_path)
    atomic_write(folder / "checkpoints/best.json", json.dumps({"checkpoint": "step-00000005"}))
    chosen = choose(folder)
    assert (chosen.step, chosen.network) == (5, "online")
    assert chosen.reason == "best checkpoint; the better one at the last evaluation"
    for path in folder.glob("report_*.json"):
        path.unlink()
    assert choose(folder).reason == "best checkpoint; the run has no scores to choose by"


def test_what_cannot_be_chosen_is_one_line(assigned, tmp_path):
    folder = copied(assigned, tmp_path)
    with pytest.raises(ValueError, match=r"no network 'asignment' in .*; there are .*did you mean"):
        load_trained(folder, "", "asignment", CPU)
    with pytest.raises(CheckpointError, match="no checkpoint '7' .* there are: step-00000005, step-00000010"):
        choose(folder, "7")
    (folder / "checkpoints/best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        choose(folder)
    assert choose(folder, "10", "online").step == 10
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match="holds no trained network"):
        choose(folder)


@pytest.mark.parametrize("network", ["online", "average"])
def test_a_segmenters_networks(tmp_path, network):
    config = segmenter_config(tmp_path, tmp_path, "run")
    state = build_state(config, len(NAMES), CPU)
    with torch.no_grad():
        state.online.head.weight.add_(1.0)
    save_checkpoint(state, tmp_path / "run/checkpoints", 1, Score(60.0, network, 3))
    for name, found in reports_of(3, (60.0, 60.0), ("online", "average")).items():
        atomic_write(tmp_path / "run" / f"report_{name}.json", found.to_json())
    model = load_trained(tmp_path / "run", "", "", CPU)
    assert model.which == network
    expected = state.online if network == "online" else state.assignment
    assert torch.equal(model.network.head.weight, expected.head.weight)
    assert choose(tmp_path / "run").weights.is_file()
