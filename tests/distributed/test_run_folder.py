"""Signals to a driver, and the lock of a run folder, also against a process that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed.run_folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from cosa_dist.distributed.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_as_ctrl_c_does_and_a_second_one_waits(tmp_path, number):
    before = signal.getsignal(number)
    farewell = []

    def run() -> None:
        with RunFolder(tmp_path).handle_signals():
            try:
                os.kill(os.getpid(), number)
                signal.pause()
            finally:
                os.kill(os.getpid(), number)
                farewell.append("done")

    with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name):
        run()
    assert farewell == ["done"]
    assert signal.getsignal(number) is before


def test_the_warning_signal_leaves_the_request_to_stop(tmp_path):
    with RunFolder(tmp_path).handle_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert (tmp_path / "stop").exists()


def test_in_a_thread_signals_are_left_alone(tmp_path):
    seen = []

    def look() -> None:
        with RunFolder(tmp_path).handle_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path):
    folder = RunFolder(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=f"run {tmp_path.name} is running"),
            folder.lock(),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    for _ in range(2):
        with folder.lock():
            pass
