"""The command line of the ingest job: run as a script where all is well, called where it is not."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cosa_dist.data.catalog import VOC_CLASSES
from cosa_dist.data.shards.split import open_split

JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=os.sep)


def test_sources_become_shards(voc_root: Path, coco_root: Path, tmp_path: Path) -> None:
    voc, coco = tmp_path / "made" / "voc", tmp_path / "made" / "coco"
    done = run("voc", voc_root, "--out", voc, "--name", "voc_drawn")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, head, *rest = done.stdout.splitlines()
    classes, (*coverage, ignored, last) = rest[:20], rest[20:]
    assert (first, second) == ("train: 6 records in 6 shards", "val: 2 records in 2 shards")
    assert head.split() == ["id", "class", "train", "val"]
    rows = [line.split() for line in classes]
    assert [row[0] for row in rows] == [str(number) for number in range(1, 21)]
    # Record n has the classes n + 1 and 20; records 6 and 7 are for validation.
    assert (rows[0], rows[6], rows[19]) == (
        ["1", "aeroplane", "1", "0"],
        ["7", "car", "0", "1"],
        ["20", "tvmonitor", "6", "2"],
    )
    assert [line.split(";")[0] for line in coverage] == [
        "train: on every picture: 'tvmonitor'",
        "train: no picture of 'car', 'cat', only in val",
        "train: no picture of "
        + ", ".join(f"'{name}'" for name in VOC_CLASSES[8:18])
        + " and 1 more, nor elsewhere",
    ]
    # Five of the 40 + n columns are ignored.
    assert ignored == "masks: 11.5 % of their pixels are 255, which is ignored"
    assert last.startswith(f"wrote {voc}: 8 images in ")
    assert last.endswith(" per process)")
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


def test_own_data_becomes_shards_by_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(JOB))["main"]
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    rows = [("x/1.png", "dog"), ("x/2.png", "cat;dog"), ("y/3.png", "")]
    for shade, (name, _) in enumerate(rows):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (shade, 9, 9)).save(pictures / name)
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4), 2).save(tmp_path / "masks" / name)
    (tmp_path / "t.csv").write_text("picture,subject\n" + "".join(f"{name},{tags}\n" for name, tags in rows))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    named = {"picture": [str(name) for name, _ in rows], "kind": [tags.split(";") for _, tags in rows]}
    pq.write_table(pa.table(named), pictures / "train.parquet")
    own = (
        "--classes",
        tmp_path / "names.txt",
        "--val-fraction",
        "0",
        "--untagged",
        "leave-out",
        "--overwrite",
    )
    table = ("--image-column", "picture", "--tags-column", "subject", "--masks", tmp_path / "masks")
    hf = ("--image-column", "picture", "--labels-column", "kind")
    for arguments, count, masks in (
        (("table", pictures, tmp_path / "t.csv", *table), 2, 2),
        (("hf", pictures, *hf), 2, 0),
    ):
        assert main([str(argument) for argument in (*arguments, *own, "--out", out)]) == 0
        split = open_split(out, "train")
        assert (split.size, split.class_counts) == (count, {"cat": 1, "dog": 2})
        assert sum(split.record(number).mask is not None for number in range(count)) == masks
    assert main(["folder", str(pictures), "--val-fraction", "0", "--out", str(out), "--overwrite"]) == 0
    assert open_split(out, "train").class_counts == {"x": 2, "y": 1}
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.glob(".*"))


def draw(root: Path, names: str) -> Path:
    for shade, name in enumerate(names.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (9 * shade, 9, 9)).save(root / name)
    return root


def test_folders_say_how_they_were_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(JOB))["main"]
    names = [f"Training/{name}/{number}.png" for name in ("rust", "background") for number in range(5)]
    root, out = draw(tmp_path / "p", " ".join([*names, "Testing/rust/9.png"])), tmp_path / "out"
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nrust\nscab\n")
    told = [
        "classes of labels.txt: 1 rust, 2 scab (2 in all)",
        "splits: folder 'Testing' is test, folder 'Training' is train",
    ]
    options = ["--out", str(out), "--classes", str(tmp_path / "labels.txt"), "--overwrite"]
    assert main(["folder", str(root), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == told
    assert lines[2:9] == [
        "train: 10 records in 8 shards, 5 without tags, 10 without mask",
        "test: 1 records in 1 shards, 1 without mask",
        "id  class  train  test",
        " 1  rust       5     1",
        " 2  scab       0     0",
        "train: no picture of 'scab', nor elsewhere; they cannot be learned",
        "no split 'val', which training wants: --data.val_split test, or ingest own data with "
        "--val-fraction 0.2 for such a fraction of train",
    ]
    assert open_split(out, "train").class_counts == {"rust": 5, "scab": 0}
    assert main(["folder", str(root), *options, "--val-fraction", "0.2"]) == 0
    assert (
        "no split 'val' is there: 2 pictures of 'train' become it (--val-fraction 0.2)"
        in capsys.readouterr().out
    )
    assert [open_split(out, split).size for split in ("train", "val", "test")] == [8, 2, 1]
    (tmp_path / "labels.txt").write_text("rust\nbackground\nscab\n")
    assert main(["folder", str(root), *options]) == 2
    assert "'background' is name 2 of the list" in capsys.readouterr().err
    assert (
        main(["folder", str(draw(tmp_path / "q", "train/1.png test/2.png")), "--out", str(tmp_path / "o")])
        == 2
    )
    assert "are splits and hold no class folders" in capsys.readouterr().err


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


@pytest.mark.parametrize("option", ["--val-share", "--max-bad-share"])
def test_the_old_name_of_an_option_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    main = runpy.run_path(str(JOB))["main"]
    with pytest.raises(SystemExit) as caught:
        main(["folder", str(tmp_path), "--out", str(tmp_path / "out"), option, "0.2"])
    assert caught.value.code == 2
    assert f"{option} is now called {option.replace('share', 'fraction')}" in capsys.readouterr().err
