"""Run folders: made in one move, taken up again from anywhere, never reused."""

from __future__ import annotations

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed import preparation
from cosa_dist.distributed.interruption import sole_driver
from cosa_dist.distributed.preparation import begun, mark_finished, prepare_run, reopen
from tests.integration.small_run import make_shards, small_config


def prepared(base, **distributed):
    make_shards(base / "shards")
    config = small_config(
        base / "shards", base, "run", tracking={"enabled": False}, distributed=distributed or {"workers": 1}
    )
    return prepare_run(config)


def test_a_job_in_a_temporary_copy_takes_up_a_run(tmp_path, monkeypatch):
    run = prepared(tmp_path)
    copy = tmp_path / "_ray_pkg_0123"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.delenv("COSA_ROOT", raising=False)
    assert reopen("run", str(tmp_path), {}) == run
    with pytest.raises(ConfigError, match="--output 'outputs' is relative"):
        reopen("run", "outputs", {})


def test_notes_of_an_end_are_cleared(tmp_path):
    run = prepared(tmp_path)
    for name in ("failure.txt", "stop", "stopped.txt"):
        (run.folder / name).write_text("old")
    reopen("run", str(tmp_path), {})
    assert {path.name for path in run.folder.iterdir()} <= {"config.yaml", "run.json", ".lock"}


def test_a_running_and_a_finished_run_are_refused(tmp_path):
    run = prepared(tmp_path)
    with sole_driver(run.folder), pytest.raises(ConfigError, match="run run is running"):
        reopen("run", str(tmp_path), {})
    mark_finished(run.folder)
    with pytest.raises(ConfigError, match="is finished"):
        reopen("run", str(tmp_path), {})
    with pytest.raises(ConfigError, match="continue it with --resume run"):
        prepare_run(run.config)


def test_a_new_number_of_workers_replaces_the_bounds(tmp_path):
    assert prepared(tmp_path, workers=[1, 2]).config.distributed.fewest_workers == 1
    found = reopen("run", str(tmp_path), {"distributed.workers": 2}).config.distributed
    assert (found.fewest_workers, found.workers) == (0, 2)
    found = reopen("run", str(tmp_path), {"distributed.workers": [2, 4]}).config.distributed
    assert (found.fewest_workers, found.workers) == (2, 4)


def test_a_kill_while_the_folder_is_made_leaves_the_name_free(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_note", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path)
    config = small_config(tmp_path / "shards", tmp_path, "run", tracking={"enabled": False})
    assert prepare_run(config).folder.is_dir()


def test_another_start_of_the_same_command_finds_its_run_and_no_other(tmp_path):
    config = small_config(tmp_path / "shards", tmp_path, "run", tracking={"enabled": False})
    assert not begun(config)
    make_shards(tmp_path / "shards")
    prepare_run(config)
    assert begun(config)
    workers = config.distributed.model_copy(update={"workers": 2})
    assert begun(config.model_copy(update={"distributed": workers}))
    with pytest.raises(ConfigError, match="another seed than asked for"):
        begun(config.model_copy(update={"seed": 1}))
    with pytest.raises(ConfigError, match="without --name"):
        begun(config.model_copy(update={"name": ""}))
