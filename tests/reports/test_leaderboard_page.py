"""The leaderboard page: what it embeds, that data cannot inject markup, and a real browser on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cosa_dist.atomic import atomic_write
from cosa_dist.reports.leaderboard import Row, Table, leaderboard
from cosa_dist.reports.leaderboard_page import leaderboard_page, shown_runs
from cosa_dist.reports.leaderboard_views import group_cells
from cosa_dist.reports.tracked_runs import experiment_digest, read_details, read_runs
from tests.reports.chromium import browser_page
from tests.reports.leaderboard_example import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def page(store, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "board.html"
    atomic_write(path, leaderboard_page(store, leaderboard(read_runs(store)), pictures=1))
    return path


def embedded(page: Path) -> list[dict]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found.group(1))


def row(run: str, miou: float, **changes: str) -> Row:
    return Row(None, run, "r", "online", miou, "unfiltered", "d", "val", "vit", run_id=run, **changes)


def test_details_are_those_of_the_store(store):
    (first,) = [run for run in read_runs(store) if run.name == "first"]
    details = read_details(store, first.run_id, pictures=1)
    assert [step for step, _ in details.curves["val/miou_unfiltered"]] == [2, 4]
    assert [value for _, value in details.curves["val/miou_unfiltered"]] == pytest.approx([12.2, 24.4])
    assert details.curves["train/total"][0] == (1, 2.0)
    assert "final/online/miou_unfiltered" not in details.curves
    assert details.iou == {"online": {"background": 90.0, "cat": 29.5, "dog": None}}
    assert list(details.pictures) == ["000_image"]
    assert details.pictures["000_image"].startswith(b"\x89PNG")


def test_the_page_embeds_the_runs_and_nothing_from_elsewhere(page):
    runs = embedded(page)
    assert {run["name"] for run in runs} == {"first", "second", "other <b>data</b>"}
    assert all(run["pictures"]["000_image"].startswith("data:image/jpeg;base64,") for run in runs)
    text = page.read_text(encoding="utf-8")
    assert "<b>data</b>" not in text
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', text)


def test_runs_come_first_and_columns_do_not_repeat_the_heading(page, store):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:5] == [
        "synthetic val (3 images), unfiltered, settings not recorded",
        "synthetic val (3 images), true_labels, settings not recorded",
        "VOC-mini val (3 images), unfiltered, settings not recorded",
        "VOC-mini val (3 images), true_labels, settings not recorded",
        "VOC val, unfiltered, each as measured",
    ]
    columns = re.findall(r'<button type="button">(.*?)</button>', text)
    assert not {"protocol", "data set"} & set(columns)
    assert "the best 3 runs have a box" in text
    one = leaderboard_page(store, leaderboard(read_runs(store), dataset="synthetic", with_published=False))
    assert "Tick up to six runs in the tables above." in one


def test_every_table_has_a_turn_before_any_has_a_second():
    tables = [
        Table("a", "val", "unfiltered", (row("a1", 9), row("a2", 8), row("a3", 7))),
        Table("b", "val", "unfiltered", (row("p", 9, status="published"), row("b1", 3), row("a1", 2))),
    ]
    assert [shown.run for shown in shown_runs(tables, 3)] == ["a1", "b1", "a2"]
    assert [shown.run for shown in shown_runs(tables, 9)] == ["a1", "b1", "a2", "a3"]


def test_without_a_run_the_page_needs_no_store():
    text = leaderboard_page("", leaderboard([], with_published=True))
    assert "CoSA-MS" in text
    assert "No run of one" in text


def test_runs_that_differ_in_their_seed_only_are_one_group(store):
    (table,) = leaderboard(read_runs(store), dataset="VOC-mini", protocol="unfiltered", with_published=False)
    cells = group_cells(table)
    (group,) = (dict(zip(cells.header, row, strict=True)) for row in cells.rows)
    assert (group["mIoU (mean)"], group["range"], group["seeds"]) == ("19.9", "9.2 to 30.5", "0 1")


def test_the_digest_forgets_seed_and_places_but_not_options_and_weights():
    plain = {"seed": "0", "losses.energy": "0.05", "data.shards": "/a", "model.weights": "/here/w.pth"}
    same = {**plain, "seed": "7", "data.shards": "/b", "model.weights": "/there/w.pth", "tracking.uri": "x"}
    assert experiment_digest(same) == experiment_digest(plain)
    assert experiment_digest({**plain, "losses.energy": "0"}) != experiment_digest(plain)
    assert experiment_digest({**plain, "model.weights": "/here/v.pth"}) != experiment_digest(plain)
    assert experiment_digest({"seed": "1"}) == ""
    assert experiment_digest(plain, "sha256:01") != experiment_digest(plain, "sha256:02")


@pytest.mark.nightly
@pytest.mark.integration
def test_a_browser_sorts_filters_and_shows_the_chosen_runs(page, tmp_path):
    with browser_page(1300) as (tab, wrong):
        tab.goto(page.as_uri())
        widths = tab.evaluate(
            "[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])"
        )
        assert all(needed <= there for needed, there in widths if there)
        table = tab.locator("section.ranking[data-dataset='VOC-mini'][data-protocol='unfiltered'] table.runs")

        def shown() -> list[str]:
            column = table.locator("thead th").all_inner_texts().index("mIoU")
            return [row.locator("td").nth(column).inner_text() for row in table.locator("tbody tr").all()]

        assert shown() == ["30.5", "9.2"]
        table.get_by_role("button", name="mIoU").click()
        # As text, "30.5" would come before "9.2".
        assert shown() == ["9.2", "30.5"]
        table.get_by_role("button", name="mIoU").click()
        assert shown() == ["30.5", "9.2"]

        tab.locator("#filter").fill("second")
        assert table.locator("tbody tr:visible").count() == 1
        assert tab.locator("section.ranking[data-dataset='VOC']:visible").count() == 0
        tab.locator("#filter").fill("")
        tab.locator("#published").uncheck()
        assert tab.locator("tr.published:visible").count() == 0
        tab.locator("#dataset").select_option("synthetic")
        assert tab.locator("section.ranking:visible").count() == 2
        tab.locator("#dataset").select_option("")

        images = tab.locator("#samples img")
        assert images.count() == 3
        assert all(image.evaluate("i => i.complete && i.naturalWidth > 0") for image in images.all())
        assert tab.locator("#curve").input_value() == "val/miou_unfiltered"
        assert tab.locator("#curves .scatterlayer .trace").count() == 3
        table.locator("input.choose").first.uncheck()
        assert images.count() == 2
        assert tab.locator("#curves .scatterlayer .trace").count() == 2
        tab.locator("#curve").select_option("train/total")
        assert "train/total" in tab.locator("#curves .ytitle").text_content()
        assert tab.locator("#classes .barlayer .trace").count() == 2
        tab.screenshot(path=tmp_path / "board.png", full_page=True)
    assert wrong == []
