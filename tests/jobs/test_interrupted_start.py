"""Ctrl-C before and after there is something to go on with."""

from __future__ import annotations

import pytest

from cosa_dist.distributed import cluster, launch, plan
from jobs import train
from tests.integration.small_run import make_shards

NOTHING = "stopped; nothing was made, the same command starts again"


class NoRay:
    """Stands for a Ray cluster of one CPU."""

    def __enter__(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind."""


def interrupted(*words: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a run called `r`, with more words if any; the last line that it says."""
    words = ["--recipe", "tiny", "--data.shards", str(make_shards(tmp_path / "shards")), "--name", "r"]
    words += ["--output", str(tmp_path / "out"), "--tracking.enabled", "false"]
    monkeypatch.setenv("RAY_ADDRESS", "local")  # a single worker would run without Ray otherwise
    monkeypatch.setattr(cluster, "ray_cluster", NoRay)
    monkeypatch.setattr(plan, "node_resources", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr(plan, "await_resources", lambda *words: None)

    def started(*more: str) -> int:
        monkeypatch.setattr("sys.argv", ["train.py", *words, *more])
        return train.main()

    return started


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("more", [(), ("--restarted",)])
def test_before_anything_is_made_the_same_command_starts_again(
    start, more, here, tmp_path, monkeypatch, capsys
):
    # With and without a Ray cluster: the last that is done before the run's folder is made.
    monkeypatch.setattr(plan, "await_resources", interrupted)
    monkeypatch.setattr(launch, "runs_here", interrupted if here else lambda *words: False)
    assert start(*more) == 130
    assert capsys.readouterr().err.splitlines()[-1] == NOTHING
    assert not (tmp_path / "out").exists()


def test_afterwards_the_run_is_continued(start, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "launch", interrupted)
    assert start() == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; continue with --resume"
    assert (tmp_path / "out" / "runs" / "r" / "run.json").is_file()
