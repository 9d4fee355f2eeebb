"""Damaged shards, runs and settings through train, predict and report: one line, before anything is made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cosa_dist.data.errors import RecordError
from cosa_dist.distributed.worker import run_worker
from tests.bad_input.outcome import COUNTS, call, leftovers
from tests.bad_input.picture_cases import encoded
from tests.integration.small_run import make_shards, small_config, task_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("whole") / "shards")


def changed(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def arrow(shards: Path, split: str = "train") -> Path:
    return sorted((shards / split).glob("*.arrow"))[0]


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def climb(content: dict) -> None:
    content["splits"]["train"]["shards"][0]["file"] = "../../secret.arrow"


SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not_there": (lambda s: shutil.rmtree(s), "no shard folder"),
    "a_file": (lambda s: (shutil.rmtree(s), s.write_text("x")), "no shard folder"),
    "empty_folder": (lambda s: (shutil.rmtree(s), s.mkdir()), "dataset.json"),
    "no_description": (lambda s: (s / "dataset.json").unlink(), "dataset.json"),
    "description_cut": (lambda s: cut(s / "dataset.json"), "not readable JSON"),
    "description_empty": (lambda s: (s / "dataset.json").write_text(""), "not readable JSON"),
    "description_list": (lambda s: (s / "dataset.json").write_text("[]"), "does not describe"),
    "description_binary": (lambda s: (s / "dataset.json").write_bytes(b"\xff\xfe\0\1"), ""),
    "description_deep": (lambda s: (s / "dataset.json").write_text("[" * 100_000), ""),
    "other_version": (lambda s: changed(s / "dataset.json", lambda c: c.update(format_version=99)), "99"),
    "no_splits": (lambda s: changed(s / "dataset.json", lambda c: c.pop("splits")), "no splits"),
    "no_train": (lambda s: changed(s / "dataset.json", lambda c: c["splits"].pop("train")), "train"),
    "no_val": (lambda s: changed(s / "dataset.json", lambda c: c["splits"].pop("val")), "val"),
    "wrong_count": (
        lambda s: changed(s / "dataset.json", lambda c: c["splits"]["train"].update(count=9)),
        "damaged",
    ),
    "no_class": (lambda s: changed(s / "dataset.json", lambda c: c.update(class_names=[])), ""),
    "climbing_shard": (lambda s: changed(s / "dataset.json", climb), "leaves its folder"),
    "shard_gone": (lambda s: arrow(s).unlink(), ""),
    "shard_cut": (lambda s: cut(arrow(s)), ""),
    "shard_empty": (lambda s: arrow(s).write_bytes(b""), ""),
    "shard_rubbish": (lambda s: arrow(s).write_bytes(b"rubbish" * 500), ""),
    "shard_of_another": (lambda s: shutil.copy(arrow(s, "val"), arrow(s)), ""),
    "val_shard_gone": (lambda s: arrow(s, "val").unlink(), ""),
}


@pytest.mark.parametrize("name", SHARDS)
def test_damaged_shards_do_not_start_a_run(name, whole, tmp_path, capsys):
    damage, part = SHARDS[name]
    shards = tmp_path / "shards"
    shutil.copytree(whole, shards)
    damage(shards)
    words = ("--recipe", "tiny", "--data.shards", shards, "--output", tmp_path / "outputs")
    done = call(capsys, "train", *words)
    assert done.code == 2
    assert part in done.the_line()
    assert not list(tmp_path.glob("outputs/runs/*"))


OPTIONS: dict[str, tuple[list[str], str]] = {
    "unknown_recipe": (["--recipe", "own_data"], "no recipe named"),
    "unknown_option": (["--recipe", "tiny", "--training.step", "5"], "did you mean training.steps?"),
    "no_value": (["--recipe", "tiny", "--training.steps"], "needs a value"),
    "word": (["--recipe", "tiny", "steps=5"], "unexpected 'steps=5'"),
    "not_a_number": (["--recipe", "tiny", "--training.steps", "many"], "training.steps"),
    "negative": (["--recipe", "tiny", "--training.steps", "-5"], "training.steps"),
    "crop_too_small": (["--recipe", "tiny", "--data.crop_size", "1"], "data.crop_size"),
    "bad_yaml": (["--recipe", "tiny", "--data.scale_range", "[1, "], "is not a YAML value"),
    "scales_reversed": (["--recipe", "tiny", "--data.scale_range", "[2, 1]"], "data.scale_range"),
    "no_config": (["--config", "gone.yaml"], "no configuration file"),
    "no_weights": (["--recipe", "tiny", "--model.weights", "gone.pth"], "gone.pth"),
    "low_above_high": (["--recipe", "tiny", "--assignment.threshold.low", "0.9"], "is above high"),
    "bad_device": (["--recipe", "tiny", "--distributed.device", "tpu"], "distributed.device"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_settings_do_not_start_a_run(name, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, part = OPTIONS[name]
    done = call(capsys, "train", "--data.shards", whole, "--output", tmp_path / "outputs", *words)
    assert done.code == 2
    assert part in done.the_line()
    assert list(tmp_path.iterdir()) == []


CONFIGS: dict[str, tuple[bytes, str]] = {
    "a_list": (b"- 1\n- 2\n", "a mapping of options is needed"),
    "a_word": (b"steps\n", "a mapping"),
    "tabs": (b"training:\n\tsteps: 5\n", "is not YAML"),
    "binary": (b"\xff\xfe\x00\x01", "is not YAML"),
    "python_object": (b"seed: !!python/object/apply:os.system ['touch owned']\n", "is not YAML"),
    "section_is_number": (b"training: 5\n", "training"),
    "unknown_section": (b"trainig: {steps: 5}\n", "trainig"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_file_that_cannot_be_used(name, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, part = CONFIGS[name]
    (tmp_path / "mine.yaml").write_bytes(content)
    words = ("--recipe", "tiny", "--config", "mine.yaml", "--data.shards", whole)
    done = call(capsys, "train", *words, "--output", tmp_path / "outputs")
    assert done.code == 2
    assert part in done.the_line()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_picture_that_spoils_later_is_named_and_the_checkpoints_stay(whole, tmp_path):
    """Bytes change inside a shard of the right size: the record is named, not just the shard."""
    COUNTS["train"] += 1
    shards = tmp_path / "shards"
    shutil.copytree(whole, shards)
    for path in (shards / "train").glob("*.arrow"):
        data = path.read_bytes()
        path.write_bytes(
            data.replace(encoded("jpg")[:2] + b"\xff\xe0", bytes(4)).replace(b"\x89PNG", bytes(4))
        )
    config = small_config(shards, tmp_path, "run")
    with pytest.raises(RecordError, match=r"record '.*' of .*cannot be decoded") as caught:
        run_worker(task_of(config, tmp_path / "run", 4))
    assert "\n" not in str(caught.value)


RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not_there": (lambda r: shutil.rmtree(r), "holds no trained network"),
    "no_checkpoints": (lambda r: shutil.rmtree(r / "checkpoints"), "holds no trained network"),
    "empty_checkpoints": (lambda r: [shutil.rmtree(c) for c in checkpoints(r)], "there are: none"),
    "weights_cut": (lambda r: cut(newest(r) / "online.safetensors"), "another size"),
    "weights_changed": (lambda r: scratch(newest(r) / "online.safetensors"), "has changed"),
    "weights_gone": (lambda r: (newest(r) / "assignment.safetensors").unlink(), "is missing"),
    "state_cut": (lambda r: cut(newest(r) / "state.json"), "cannot be read"),
    "state_binary": (lambda r: (newest(r) / "state.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "state_list": (lambda r: (newest(r) / "state.json").write_text("[]"), "not that of a checkpoint"),
    "state_changed": (lambda r: changed(newest(r) / "state.json", lambda c: c.update(step=4)), "has changed"),
    "other_format": (lambda r: changed(newest(r) / "state.json", lambda c: c.update(format=9)), "format 9"),
}


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def newest(run: Path) -> Path:
    return checkpoints(run)[-1]


def scratch(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", RUNS)
def test_a_damaged_run_predicts_nothing(name, trained_run, tmp_path, capsys):
    damage, part = RUNS[name]
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    shutil.copytree(trained_run, run)
    damage(run)
    picture.write_bytes(encoded("png"))
    done = call(capsys, "predict", run, picture, "--out", tmp_path / "out")
    assert done.code == 2
    assert part in done.the_line()
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_would_run_code_does_not(trained_run, tmp_path, capsys):
    """A pickle in the place of the weights is refused by its hash, and read by nobody."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    owned = tmp_path / "owned"
    evil = f"cposix\nsystem\n(S'touch {owned}'\ntR.".encode()
    (newest(run) / "online.safetensors").write_bytes(evil)
    (newest(run) / "optimizer.pt").write_bytes(evil)
    (tmp_path / "picture.png").write_bytes(encoded("png"))
    done = call(capsys, "predict", run, tmp_path / "picture.png", "--out", tmp_path / "out")
    assert done.code == 2
    done.the_line()
    assert not owned.exists()


PREDICT_WORDS: dict[str, tuple[list[str], str]] = {
    "nothing_there": (["gone.jpg"], "no file or folder gone.jpg"),
    "no_match": (["*.jpg"], "no file matches"),
    "empty_folder": (["empty"], "no picture in empty"),
    "other_files": (["texts"], "no picture in texts"),
}


@pytest.mark.parametrize("name", PREDICT_WORDS)
def test_words_that_name_no_picture(name, trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    words, part = PREDICT_WORDS[name]
    done = call(capsys, "predict", trained_run, *words, "--out", "out")
    assert done.code == 2
    assert part in done.the_line()
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_skipped(trained_run, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded("png"))
    (tmp_path / "a.png").chmod(0)
    done = call(capsys, "predict", trained_run, tmp_path, "--out", tmp_path / "out")
    assert done.code == 3
    assert "a.png: cannot be read: Permission denied" in done.err


def test_a_config_of_the_run_does_not_execute(trained_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "config.yaml").write_text("seed: !!python/object/apply:os.system ['touch owned']\n")
    assert call(capsys, "report", run, "--images", 0).code == 0
    assert not Path("owned").exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load((run / "config.yaml").read_text())
    assert leftovers(run / "checkpoints") == []
