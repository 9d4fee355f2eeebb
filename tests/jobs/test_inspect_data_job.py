"""jobs/inspect_data.py as a user meets it."""

from __future__ import annotations

from jobs.inspect_data import main
from tests.integration.small_run import make_shards


def test_page_is_written_and_summed_up(tmp_path, capsys):
    shards = make_shards(tmp_path / "shards")
    page = tmp_path / "pages" / "data.html"
    words = ["--samples", "2", "--crop-size", "32", "--out", str(page)]
    assert main([str(shards), *words]) == 0
    shown = capsys.readouterr().out
    assert "train: 24 images, 24 with a mask" in shown
    assert "val: 11 images" in shown
    assert page.read_text().count("<article>") == 4
    assert list(page.parent.iterdir()) == [page]


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no shard folder" in capsys.readouterr().err
    shards = make_shards(tmp_path / "shards")
    assert main([str(shards), "--splits", "vall"]) == 2
    assert "did you mean 'val'" in capsys.readouterr().err
    assert main([str(shards), "--scale-range", "2", "1"]) == 2
    assert "0 < LOW <= HIGH" in capsys.readouterr().err
