"""The command line of the ingest job: run as a script where all is well, called where it is not."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cosa_dist.data.shards import open_split

JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=os.sep)


def test_sources_become_shards(voc_root: Path, coco_root: Path, tmp_path: Path) -> None:
    voc, coco = tmp_path / "made" / "voc", tmp_path / "made" / "coco"
    done = run("voc", voc_root, "--out", voc, "--name", "voc_drawn")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "train: 6 records in 6 shards",
        "val: 2 records in 2 shards",
        f"wrote {voc}",
    ]
    assert open_split(voc, "train").info.name == "voc_drawn"
    done = run("coco", coco_root, "--out", coco, "--splits", "train", "--processes", "2")
    assert "train: 3 records in 3 shards; differs from the known size of 82081" in done.stdout


def test_generated_pictures_become_shards(tmp_path: Path) -> None:
    sizes = ("--train", "4", "--val", "2", "--image-size", "48", "--seed", "5")
    assert run("synthetic", "--out", tmp_path / "made", *sizes).returncode == 0
    val = open_split(tmp_path / "made", "val")
    assert val.size == 2
    assert val.record(0).context is not None
    assert (val.record(0).width, val.record(0).height) == (48, 48)


def test_mistakes_end_with_one_line(
    voc_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(JOB))["main"]
    out = tmp_path / "out"
    for arguments, words in (
        (("voc", tmp_path / "nowhere", "--out", out), "no VOC devkit in"),
        (("voc", voc_root, "--out", out, "--splits", "vall"), "did you mean 'val'"),
        (("voc", voc_root, "--out", voc_root), "is not a shard folder"),
        (("voc", voc_root, "--out", out, "--splits", ","), "--splits names no split"),
        (("voc", voc_root, "--out", out, "--processes", "0"), "processes must be 1"),
        (("voc", voc_root, "--out", JOB / "x"), "cannot make a folder in"),
        (("synthetic", "--out", out, "--train", "0"), "'train'"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("ingest: ")
        assert len(printed.splitlines()) == 1
        assert words in printed
    assert not out.exists()
