"""The comparison in MLflow's own pages: a real server and a real browser on the runs of a small store.

The addresses are those that the documentation gives: runs filtered by tag and sorted by the headline metric,
two runs compared, and the pictures of a run.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from cosa_dist.distributed.cluster import free_port
from cosa_dist.reports.tracked_runs import read_runs
from tests.reports.chromium import browser_page
from tests.reports.leaderboard_example import make_store
from tests.support.mlflow_server import await_mlflow_server, start_mlflow_server

pytestmark = [pytest.mark.nightly, pytest.mark.integration]

HEADLINE = "metrics.`final/online/miou_unfiltered`"
FILTER = 'tags.dataset = "VOC-mini"'


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def server(store: str, tmp_path_factory) -> Iterator[str]:
    """Address of an MLflow server on the store; loopback only."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = start_mlflow_server(store, port, tmp_path_factory.mktemp("server"))
    try:
        await_mlflow_server(address)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def runs_page(server: str, ascending: bool) -> str:
    return (
        f"{server}/#/experiments/1/runs?searchFilter={quote(FILTER)}"
        f"&orderByKey={quote(HEADLINE)}&orderByAsc={str(ascending).lower()}"
    )


def test_runs_are_filtered_by_tag_and_sorted_by_the_headline(server):
    with browser_page() as (tab, _):
        tab.set_default_timeout(90_000)
        for ascending, expected in ((False, ["first", "second"]), (True, ["second", "first"])):
            tab.goto("about:blank")
            tab.goto(runs_page(server, ascending))
            tab.get_by_text("2 matching runs").wait_for()
            places = {name: tab.get_by_text(name, exact=True).first.bounding_box() for name in expected}
            assert sorted(expected, key=lambda name: places[name]["y"]) == expected
        assert tab.get_by_text("other <b>data</b>").count() == 0


def test_two_runs_stand_side_by_side_with_scores_and_settings(server, store):
    runs = {run.name: run.run_id for run in read_runs(store)}
    chosen = quote(json.dumps([runs["first"], runs["second"]]))
    with browser_page(height=3000) as (tab, _):
        tab.set_default_timeout(90_000)
        tab.goto(f"{server}/#/compare-runs?runs={chosen}&experiments={quote(json.dumps(['1']))}")
        tab.get_by_text("final/online/miou_unfiltered").first.wait_for()
        text = tab.inner_text("body")
    for shown in ("30.5", "9.25", "losses.energy", "git_commit", "VOC-mini"):
        assert shown in text, shown


def test_a_picture_of_a_run_is_shown(server, store):
    (run,) = [run for run in read_runs(store) if run.name == "first"]
    with browser_page() as (tab, _):
        tab.set_default_timeout(90_000)
        tab.goto(f"{server}/#/experiments/1/runs/{run.run_id}/artifacts/pictures/000_image.png")
        picture = tab.locator("img[src^='blob:'], img[src*='000_image']").first
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") == 60
