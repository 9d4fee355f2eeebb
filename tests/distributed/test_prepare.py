"""Run folders: made in one move, taken up again from anywhere, never reused."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config, merge, read_recipe, to_yaml
from cosa_dist.distributed import prepare
from cosa_dist.distributed.prepare import already_started, prepare_run, reopen, resolve
from cosa_dist.distributed.run_folder import RunFolder
from jobs import train
from tests.integration.small_run import make_shards, small_config


def prepared(base, **distributed):
    make_shards(base / "shards")
    config = small_config(
        base / "shards", base, "run", tracking={"enabled": False}, distributed=distributed or {"workers": 1}
    )
    return prepare_run(config)


def reopened(base, overrides, **more):
    return reopen(RunFolder(base / "runs" / "run"), overrides, **more)


def test_a_run_is_reopened_as_it_was_prepared(tmp_path):
    run, again = prepared(tmp_path), reopened(tmp_path, {})
    assert (again.config, again.folder.path, again.note) == (run.config, run.folder.path, run.note)


def test_a_job_in_a_temporary_copy_resumes_a_run_by_its_absolute_output(tmp_path, monkeypatch, capsys):
    copy = tmp_path / "_ray_pkg_0123"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.delenv("COSA_ROOT", raising=False)
    for output, said in (
        (str(tmp_path), "no run named 'run'"),
        ("outputs", "--output 'outputs' is relative"),
    ):
        monkeypatch.setattr("sys.argv", ["train.py", "--resume", "run", "--output", output])
        assert train.main() == 2
        assert said in capsys.readouterr().err


def test_notes_of_an_end_are_cleared(tmp_path):
    run = prepared(tmp_path)
    for name in ("failure.txt", "stop", "stopped.txt"):
        (run.folder.path / name).write_text("old")
    reopened(tmp_path, {})
    assert {path.name for path in run.folder.path.iterdir()} <= {"config.yaml", "run.json", ".lock"}


def test_a_running_and_a_finished_run_are_refused(tmp_path):
    run = prepared(tmp_path)
    with run.folder.lock(), pytest.raises(ConfigError, match="run run is running"):
        reopened(tmp_path, {})
    run.folder.mark_finished()
    with pytest.raises(ConfigError, match="is finished"):
        reopened(tmp_path, {})
    with pytest.raises(ConfigError, match="continue it with --resume run"):
        prepare_run(run.config)


def test_a_new_number_of_workers_replaces_the_bounds(tmp_path):
    assert prepared(tmp_path, workers=[1, 2]).config.distributed.fewest_workers == 1
    found = reopened(tmp_path, {"distributed.workers": 2}).config.distributed
    assert (found.fewest_workers, found.workers) == (0, 2)
    found = reopened(tmp_path, {"distributed.workers": [2, 4]}).config.distributed
    assert (found.fewest_workers, found.workers) == (2, 4)


def test_a_kill_while_the_folder_is_made_leaves_the_name_free(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_note", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path)
    config = small_config(tmp_path / "shards", tmp_path, "run", tracking={"enabled": False})
    assert prepare_run(config).folder.path.is_dir()


def test_another_start_of_the_same_command_finds_its_run_and_no_other(tmp_path):
    config = small_config(tmp_path / "shards", tmp_path, "run", tracking={"enabled": False})
    assert not already_started(config)
    make_shards(tmp_path / "shards")
    prepare_run(config)
    assert already_started(config)
    workers = config.distributed.model_copy(update={"workers": 2})
    assert already_started(config.model_copy(update={"distributed": workers}))
    with pytest.raises(ConfigError, match="another seed than asked for"):
        already_started(config.model_copy(update={"seed": 1}))


def test_options_that_came_after_a_run_was_begun_do_not_refuse_its_restart(tmp_path):
    config = small_config(tmp_path / "shards", tmp_path, "run", tracking={"enabled": False})
    make_shards(tmp_path / "shards")
    file = prepare_run(config).folder.config_file
    stored = config.model_dump(mode="json")
    del stored["model"]["normalisation"], stored["evaluation"]["protocol"], stored["stage_one"]
    file.write_text(yaml.safe_dump(stored, sort_keys=False))
    assert already_started(config)
    with pytest.raises(ConfigError, match="another seed than asked for"):
        already_started(config.model_copy(update={"seed": 1}))


def test_an_encoder_that_a_new_run_is_refused_goes_on_in_one_of_an_earlier_version(tmp_path, monkeypatch):
    config = small_config(tmp_path / "shards", tmp_path, "run", tracking={"enabled": False})
    make_shards(tmp_path / "shards")
    folder = prepare_run(config).folder
    old = {"backbone": "resnetv2_50", "weights": "none", "backbone_options": {"layers": [1, 1, 1, 1]}}
    changed = build_config(merge(config.model_dump(), {"model": old, "data": {"crop_size": 64}}))
    with pytest.raises(ValueError, match="without its final norm"):
        prepare_run(changed.model_copy(update={"name": "other"}))
    folder.config_file.write_text(to_yaml(changed))
    assert reopen(folder, {}).config.model.backbone == "resnetv2_50"


def no_ray(config):
    raise ConnectionError("no Ray")


def test_what_keeps_ray_from_starting_leaves_nothing(tmp_path):
    make_shards(tmp_path / "shards")
    config = small_config(tmp_path / "shards", tmp_path / "out", "run")
    with pytest.raises(ConnectionError):
        prepare_run(config, ready=no_ray)
    assert not (tmp_path / "out").exists()


def test_what_keeps_ray_from_starting_leaves_an_interrupted_run_as_it_was(tmp_path, monkeypatch):
    run = prepared(tmp_path)
    (run.folder.path / "stopped.txt").write_text("old")
    monkeypatch.setattr(prepare, "reopen_run", lambda *words: pytest.fail("marked as running"))
    before = {path.name: path.read_text() for path in run.folder.path.iterdir()}
    with pytest.raises(ConnectionError):
        reopened(tmp_path, {}, ready=no_ray)
    assert {
        path.name: path.read_text() for path in run.folder.path.iterdir() if path.name != ".lock"
    } == before
    with run.folder.lock():
        pass


def test_a_run_is_ready_before_anything_of_it_is_there(tmp_path):
    make_shards(tmp_path / "shards")
    config = small_config(tmp_path / "shards", tmp_path / "out", "run", tracking={"enabled": False})
    seen = []
    run = prepare_run(config, ready=lambda checked: seen.append((checked.name, (tmp_path / "out").exists())))
    assert seen == [("run", False)]
    assert run.folder.path.is_dir()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"backbone": "vit_tinny"}}, "vit_tinny"),
        ({"model": {"weights": "in22k_no_such"}}, "neither a file nor a timm tag of vit_tiny"),
        ({"model": {"weights": "gone.pth.tar"}}, "no file at .*gone.pth.tar"),
        ({"model": {"weights": "FOLDER/lfs.pth"}}, "pointer of Git LFS"),
        ({"model": {"weights": "FOLDER/other.pth"}}, "holds no tensor of the backbone"),
        ({"model": {"aux_layer": -9}}, "model.aux_layer -9"),
        ({"data": {"crop_size": 33}}, "data.crop_size 33"),
        ({"data": {"shards": "FOLDER/none"}}, "no shard folder"),
        ({"tracking": {"uri": "mlruns"}}, "sqlite:///"),
        ({"distributed": {"workers": 9}}, "cannot be shared evenly by 9 workers"),
        ({"tracking": {"uri": "http://127.0.0.1:9"}}, "does not answer"),
        ({"tracking": {"uri": "sqlite:///FOLDER/a%20b.db"}}, "escape such as %20"),
        ({"output": "FOLDER/a?b"}, "path with '\\?'"),
        ({"output": "FOLDER/lfs.pth"}, "cannot write to .*lfs.pth"),
    ],
)
def test_a_mistake_is_found_before_ray_is_started(tmp_path, sections, message):
    make_shards(tmp_path / "shards")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    torch.save({"student": {"x": torch.ones(1)}, "teacher": {"y": torch.ones(1)}}, tmp_path / "other.pth")
    sections = json.loads(json.dumps(sections).replace("FOLDER", str(tmp_path)))
    config = small_config(tmp_path / "shards", tmp_path / "out", "run")
    config = config.model_validate(
        {**config.model_dump(), "output": sections.pop("output", config.output)}
        | {name: {**getattr(config, name).model_dump(), **values} for name, values in sections.items()}
    )
    there = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, OSError), match=message) as caught:
        prepare_run(resolve(config), ready=lambda checked: pytest.fail("Ray is started"))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "7", '{"run_id": "a"}', '{"run_id": "", "finished": false}']
)
def test_a_damaged_note_is_named(tmp_path, text):
    run = prepared(tmp_path)
    if text is None:
        run.folder.note_file.unlink()
    else:
        run.folder.note_file.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json is missing or damaged"):
        reopened(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not YAML"),
        ("", r"config\.yaml is empty; the file is damaged, or of another version"),
        ("seed: x", r"config\.yaml: seed"),
        ("distributed: 3", r"config\.yaml: distributed"),
    ],
)
def test_a_damaged_configuration_is_named(tmp_path, text, message):
    run = prepared(tmp_path)
    run.folder.config_file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        reopened(tmp_path, {})


def test_a_lost_configuration_is_no_unknown_name(tmp_path):
    run = prepared(tmp_path)
    run.folder.config_file.unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml is missing: put it back"):
        reopened(tmp_path, {})


@pytest.mark.parametrize("name", ["a/b", "../b", "/b", ".", "..", ".b", "a\nb", "x" * 300])
def test_a_name_that_is_none_of_a_folder_is_refused(tmp_path, name):
    make_shards(tmp_path / "shards")
    with pytest.raises(ConfigError, match="a run's folder bears its name"):
        resolve(small_config(tmp_path / "shards", tmp_path / "out", name))
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_of_a_resume_is_said_of_the_command_line(tmp_path):
    prepared(tmp_path)
    with pytest.raises(ConfigError, match=r"command line: distributed\.workers"):
        reopened(tmp_path, {"distributed.workers": -1})
    with pytest.raises(ConfigError, match="--seed: a resumed run keeps"):
        reopened(tmp_path, {"seed": 1})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "no Ray"),
        ({"stage_one": {"options": {"losses.enrgy": 1}}}, "stage_one.options: unknown option losses.enrgy"),
        ({"stage_one": {"options": {"data.crop_size": 33}}}, "data.crop_size 33"),
        ({"stage_one": {"recipe": "", "run": "FOLDER/none"}}, "no run folder at .*none"),
        ({"model": {"backbone": "vit_tinny"}}, "vit_tinny"),
    ],
)
def test_a_staged_run_that_cannot_start_leaves_nothing(tmp_path, sections, message):
    make_shards(tmp_path / "shards")
    first = {"recipe": "tiny", "options": {}, "run": ""}
    sections = json.loads(json.dumps(sections).replace("FOLDER", str(tmp_path)))
    place = {"output": str(tmp_path / "out"), "name": "whole", "data": {"shards": str(tmp_path / "shards")}}
    own = {"stage_one": first | sections.pop("stage_one", {}), **sections}
    config = build_config(merge(merge(read_recipe("tiny_ms"), place), own))
    with pytest.raises((ValueError, OSError), match=message):
        prepare_run(resolve(config), ready=no_ray)
    assert not (tmp_path / "out").exists()


def test_a_staged_run_is_taken_up_with_the_workers_asked_for(tmp_path):
    make_shards(tmp_path / "shards")
    stages = {"kind": "segmenter", "supervision": "pseudo_masks", "stage_one": {"recipe": "tiny"}}
    settings = {"tracking": {"enabled": False}, "distributed": {"workers": [1, 2]}}
    run = prepare_run(small_config(tmp_path / "shards", tmp_path, "run", **stages, **settings))
    seen = []
    again = reopened(tmp_path, {"distributed.workers": 2}, ready=seen.append)
    assert seen == [again.config]
    assert (run.config.distributed.fewest_workers, run.config.distributed.workers) == (1, 2)
    assert (again.config.distributed.fewest_workers, again.config.distributed.workers) == (0, 2)
    with pytest.raises(ConfigError, match="command line: distributed.workers"):
        reopened(tmp_path, {"distributed.workers": -1}, ready=no_ray)
