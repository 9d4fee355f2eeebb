#!/usr/bin/env bash
# mlflow 3.17.2 (SQLite store): a finished run that is taken up again (`update_run(status="RUNNING")`, or
# `start_run(run_id=...)`) keeps the end time of its first part while it runs: status and times contradict each other,
# and a duration made of the two times is that of the first part.
# What we do: a run that is not over has no duration on the leaderboard.
# Seen: RUNNING, end_time equal to that of the finished run
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install mlflow==3.17.2 2>/dev/null
v/bin/python -W ignore - 2>/dev/null <<'PY'
import mlflow
from mlflow import MlflowClient

client = MlflowClient("sqlite:///store.db")
run = client.create_run(client.create_experiment("resumed")).info.run_id
client.set_terminated(run)
first = client.get_run(run).info
client.update_run(run, status="RUNNING")
again = client.get_run(run).info
mlflow.set_tracking_uri("sqlite:///store.db")
with mlflow.start_run(run_id=run):
    inside = client.get_run(run).info
print(first.status, again.status, inside.status, "end time kept:", first.end_time == again.end_time == inside.end_time)
assert (again.status, inside.status) == ("RUNNING", "RUNNING")
assert first.end_time == again.end_time == inside.end_time is not None
PY
