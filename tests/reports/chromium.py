"""A headless Chromium for the tests of pages: Debian's, installed where it is missing and can be."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Root needs --no-sandbox; the others keep it from looking for its maker's hosts.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def installed() -> str:
    """Path of a Chromium, empty if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), "")


def chromium() -> str:
    """Path of a Chromium; skips the test with the reason where none can be had."""
    if found := installed():
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("no Chromium here, and only root with apt-get could install one")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            ["apt-get", *arguments], capture_output=True, text=True, timeout=600, env=environment, check=False
        )
        if done.returncode:
            pytest.skip(f"no Chromium here, and apt-get failed: {(done.stdout + done.stderr)[-200:]}")
    return installed()


@contextmanager
def browser_page(width: int = 1400, height: int = 1000) -> Iterator[tuple[Page, list[str]]]:
    """A page of a fresh browser, and what goes wrong on it: console errors, exceptions, failed requests."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.on(
                "console", lambda message: wrong.append(message.text) if message.type == "error" else None
            )
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url[:100]}"))
            yield page, wrong
        finally:
            browser.close()
