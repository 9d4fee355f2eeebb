"""What run folders tell of a sweep's trials."""

from __future__ import annotations

import json

import pytest

from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.sweep.trial import COST, read_trial, read_trials, recorded_metrics, write_options


def folder_of(runs, name, lines=(), finished=False):
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"finished": finished, "run_id": "", "tracking_uri": ""}))
    with (folder / "metrics.jsonl").open("w") as file:
        for time_ms, step, metrics in lines:
            file.write(json.dumps({"time_ms": time_ms, "step": step, "metrics": metrics}) + "\n")
        file.write('{"time_ms": 9')
    return RunFolder(folder)


LINES = [
    (1000, 1, {"train/total": 2.0}),
    (3000, 4, {"val/miou_unfiltered": 10.0, "val/online/miou_unfiltered": 9.0}),
    (7000, 8, {"final/miou_unfiltered": 12.5}),
]


def test_history_cost_and_status(tmp_path):
    folder = folder_of(tmp_path, "s-00000001", LINES, finished=True)
    write_options(folder, {"losses.energy": 0.1}, workers=2)
    trial = read_trial(folder)
    assert trial.history == {4: 10.0, 8: 12.5}
    assert (trial.miou, trial.seconds, trial.status, trial.over) == (12.5, 6.0, "finished", True)
    assert trial.options == {"losses.energy": 0.1}
    assert recorded_metrics(trial) == [
        {"step": 4.0, "miou_unfiltered": 10.0, COST: pytest.approx(6.0)},
        {"step": 8.0, "miou_unfiltered": 12.5, COST: pytest.approx(12.0)},
    ]


def test_every_status(tmp_path):
    stopped = folder_of(tmp_path, "s-00000001", LINES)
    stopped.mark_pruned(4)
    failed = folder_of(tmp_path, "s-00000002")
    failed.failure_file.write_text("ValueError: no such thing\n")
    folders = [stopped, failed, folder_of(tmp_path, "s-00000003")]
    for folder in folders:
        write_options(folder, {}, 1)
    trials = read_trials(tmp_path, "s")
    assert [trial.status for trial in trials] == ["pruned", "failed", "unfinished"]
    assert [trial.over for trial in trials] == [True, False, False]
    # It went on for a moment after the scheduler's word; that does not count.
    assert trials[0].miou == 10.0
    assert trials[1].reason == "ValueError: no such thing"
    assert trials[2].miou is None


def test_a_pruned_trial_that_came_to_its_end_all_the_same_is_finished_and_whole(tmp_path):
    folder = folder_of(tmp_path, "s-00000001", LINES, finished=True)
    folder.mark_pruned(4)
    write_options(folder, {}, 1)
    trial = read_trial(folder)
    assert (trial.status, trial.miou) == ("finished", 12.5)


def test_a_note_of_an_earlier_version_says_the_same(tmp_path):
    folder = folder_of(tmp_path, "s-00000001", LINES)
    write_options(folder, {}, 1)
    (folder.path / "stopped.json").write_text('{"step": 4}')
    trial = read_trial(folder)
    assert folder.pruned
    assert (trial.status, trial.miou) == ("pruned", 10.0)


def test_foreign_folders_are_left_alone(tmp_path):
    folder_of(tmp_path, "s-warmup", LINES)
    odd = folder_of(tmp_path, "s-0000000f")
    (odd.path / "trial.json").write_text("[1")
    write_options(folder_of(tmp_path, "s-2-00000001", LINES), {}, 1)
    assert read_trials(tmp_path, "s") == []
    assert len(read_trials(tmp_path, "s-2")) == 1
    assert read_trials(tmp_path / "none", "s") == []
