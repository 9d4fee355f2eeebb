"""What slurm/job.sh decides when its program ends, with a program and a SLURM made of a few lines of bash."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.client import PROJECT

# The cluster is a sleeping process; SLURM's command says what it was asked for and, as the real one, ends the
# script.
JOB = """\
set -euo pipefail
source slurm/job.sh
prepare_job() {
    cluster_driver= cluster_step= cluster_logs=logs gpus_a_node=${GPUS:-0} cpus_a_node=${CPUS:-8}
    trap stop_cluster EXIT
}
start_cluster() {
    CLUSTER_TOLD=$PLACE/told
    sleep 60 >/dev/null 2>&1 &
    cluster_step=$!
    echo "$cluster_step" >"$PLACE/step"
}
stop_cluster() {
    trap - EXIT
    if [ -n "$cluster_step" ]; then kill "$cluster_step" 2>/dev/null || true; fi
    say "cluster down"
}
choose_workers() { :; }
scontrol() { echo "scontrol $*"; [ "$ALLOWED" = yes ] && exit 99; }
run_job "$PLACE/program" "$@"
"""
CONFIG = """\
if [[ $* = *--print-config ]]; then
    [ "$NAME" != wrong ] || exit 2
    echo "recipe: x"
    echo "name: $NAME"
    exit
fi
echo "words: $*"
"""


@dataclass
class Job:
    """A running or ended script."""

    process: subprocess.Popen[str]
    place: Path

    def end(self) -> tuple[int, str]:
        """Exit code and what it said."""
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def warn(self) -> None:
        """Send SLURM's warning once the program runs."""
        while not (self.place / "runs").exists():
            assert self.process.poll() is None
            time.sleep(0.1)
        os.kill(self.process.pid, signal.SIGUSR1)


def start(place: Path, program: str, *words: str, **variables: str) -> Job:
    """Start the script with a program's lines."""
    (place / "slurm").symlink_to(PROJECT / "slurm") if not (place / "slurm").exists() else None
    (place / "program").write_text(CONFIG + f"touch {place}/runs\n" + program)
    values = {"SLURM_JOB_ID": "7", "COSA_PROJECT": str(place), "COSA_PYTHON": "bash", "PLACE": str(place)}
    values |= {"PATH": os.environ["PATH"], "ALLOWED": "yes", "NAME": "''", **variables}
    # The program gets `-u` first, as Python does.
    process = subprocess.Popen(
        ["bash", "-c", JOB, "job", *words],
        cwd=place,
        env=values,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Job(process, place)


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_a_program_that_ends_by_itself_ends_the_job_with_its_code(tmp_path, code):
    found, said = start(tmp_path, f"exit {code}").end()
    assert found == code
    assert "scontrol" not in said
    assert f"program ended with {code}\n" in said


def test_a_warned_program_that_saves_is_started_again(tmp_path):
    job = start(tmp_path, "trap 'echo saved; exit 130' USR1; while true; do sleep 0.1; done")
    job.warn()
    code, said = job.end()
    assert code == 99
    order = [
        said.index(part)
        for part in ("warned", "saved", "ended with 130", "cluster down", "scontrol requeue 7")
    ]
    assert order == sorted(order)


def test_a_warned_program_that_does_not_save_in_time_is_ended_and_started_again(tmp_path):
    program = "trap '' USR1; trap 'exit 143' TERM; while true; do sleep 0.1; done"
    job = start(tmp_path, program, COSA_GRACE="2")
    job.warn()
    code, said = job.end()
    assert code == 99
    assert said.count("no checkpoint within 2 s") == 1
    assert said.index("ended with 143") < said.index("scontrol requeue 7")


def test_a_warned_program_that_comes_to_its_end_is_not_started_again(tmp_path):
    job = start(tmp_path, "trap 'exit 0' USR1; while true; do sleep 0.1; done")
    job.warn()
    code, said = job.end()
    assert code == 0
    assert "scontrol" not in said


@pytest.mark.parametrize("program", ["touch $PLACE/told; exit 1", "kill $(cat $PLACE/step); exec sleep 60"])
def test_a_lost_cluster_starts_the_job_again_a_number_of_times(tmp_path, program):
    code, said = start(tmp_path, program, COSA_RESTARTS="3", SLURM_RESTART_COUNT="2").end()
    assert code == 99
    assert "scontrol requeue 7" in said
    code, said = start(tmp_path, program, COSA_RESTARTS="3", SLURM_RESTART_COUNT="3").end()
    assert code == 75
    assert "scontrol" not in said


def test_where_slurm_may_not_requeue_the_job_says_how_to_go_on(tmp_path):
    job = start(tmp_path, "trap 'exit 130' USR1; while true; do sleep 0.1; done", ALLOWED="no", NAME="mine")
    job.warn()
    code, said = job.end()
    assert code == 130
    assert said.endswith("go on with --resume mine\n")


def test_a_name_comes_from_the_configuration_or_the_job_and_outlives_restarts(tmp_path):
    words = ("--recipe", "x")
    assert "words: --recipe x --name slurm-7\n" in start(tmp_path, "", *words).end()[1]
    assert "words: --recipe x --name mine\n" in start(tmp_path, "", *words, NAME="mine").end()[1]
    again = start(tmp_path, "", *words, NAME="other", SLURM_RESTART_COUNT="1").end()[1]
    assert "words: --recipe x --name mine --restarted\n" in again
    assert "words: --resume old\n" in start(tmp_path, "", "--resume", "old").end()[1]


def test_a_task_of_an_array_has_its_own_seed_and_name(tmp_path):
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
    assert "words: --name slurm-5-s2 --seed 2\n" in start(tmp_path, "", **array).end()[1]
    assert "words: --name mine-s2 --seed 2\n" in start(tmp_path, "", NAME="mine", **array).end()[1]
    again = start(tmp_path, "", SLURM_RESTART_COUNT="1", **array).end()[1]
    assert "words: --name mine-s2 --restarted --seed 2\n" in again


def test_a_task_of_an_array_asks_for_its_own_restart(tmp_path):
    """The number of the array's last task is the array's: with it, SLURM would start all tasks again."""
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert "scontrol requeue 7_2\n" in start(tmp_path, "touch $PLACE/told; exit 1", **array).end()[1]


def test_a_wrong_option_ends_the_job_before_the_cluster(tmp_path):
    code, said = start(tmp_path, "", NAME="wrong").end()
    assert code == 2
    assert "words:" not in said
    assert not (tmp_path / "step").exists()


@pytest.mark.parametrize(("cpus", "words", "code"), [("47", [], 2), ("48", [], 0), ("47", ["--a.b", "1"], 2)])
def test_a_gpu_with_few_cpus_ends_the_job_before_the_cluster(tmp_path, cpus, words, code):
    found, said = start(tmp_path, "", *words, GPUS="8", CPUS=cpus).end()
    assert found == code
    assert ("training needs 6 for each, better 12: sbatch --cpus-per-task=96" in said) == bool(code)
    assert (tmp_path / "step").exists() != bool(code)


def test_who_says_how_many_cpus_a_worker_gets_is_not_asked_for_more(tmp_path):
    asked = ("--distributed.cpus_per_worker", "4")
    code, said = start(tmp_path, "", *asked, GPUS="8", CPUS="32").end()
    assert code == 0
    assert "words: --distributed.cpus_per_worker 4 --name slurm-7\n" in said
