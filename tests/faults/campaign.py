"""Kill parts of small runs at random and see that nothing is lost: `python -m tests.faults.campaign`.

Starts a Ray cluster of two nodes and an MLflow server on this machine, trains one run undisturbed, and then
run after run with ten kills each: a worker, a node, the driver, the MLflow server. Each run must end with the
same weights and the same history. Started again with the same `--out`, it goes on with the runs that are
missing; a run that was broken off is made anew. Ends with the table of docs/faults.md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.config.paths import lasting_place
from cosa_dist.config.schema import RunConfig

CHANGES: dict[str, Any] = {
    "assignment": {"reliability": True, "threshold": {"kind": "two_components", "queue": 4}},
    "losses": {"warmup_steps": 3},
    "training": {"steps": 400, "checkpoint_every": 15},
    "evaluation": {"every": 100},
    "distributed": {"workers": 2, "cpus_per_worker": 1, "max_failures": 1000, "device": "cpu"},
}
"""on top of the recipe `tiny`: a searched threshold has a state of its own to lose"""
WEIGHTS = {"worker": 4, "node": 2, "driver": 2, "tracker": 2}


def chaos_config(out: Path, tracking_uri: str, name: str, **sections: Any) -> RunConfig:
    """The small run of this job, with changes by section."""
    place = {
        "name": name,
        "output": str(out),
        "data": {"shards": str(out / "shards")},
        "tracking": {"uri": tracking_uri},
    }
    return build_config(reduce(merge, (read_recipe("tiny"), CHANGES, place, sections)))


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table of recovery times by victim."""
    lines = ["| killed | kills | median s to the next step | longest s |", "|---|---|---|---|"]
    for victim in WEIGHTS:
        times = [row["recovery"] for result in results for row in result["kills"] if row["victim"] == victim]
        if times:
            lines.append(f"| {victim} | {len(times)} | {statistics.median(times):.1f} | {max(times):.1f} |")
    return "\n".join(lines)


def campaign(out: Path, kills: int, per_run: int, seed: int) -> list[dict[str, Any]]:
    """Make the runs that are missing; return the results of all."""
    from tests.faults.chaos import differences, disturbed_run, draw_kills, undisturbed_run
    from tests.faults.cluster import FaultCluster
    from tests.integration.small_run import make_shards

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "shards").exists():
        make_shards(out / "shards")
    results = []
    with FaultCluster(out / "cluster") as cluster:
        attempt = len(list((out / "runs").glob("*"))) if (out / "runs").exists() else 0
        expected = undisturbed_run(cluster, chaos_config(out, cluster.tracking_uri, f"undisturbed-{attempt}"))
        print("undisturbed run done", flush=True)
        for number in range(-(-kills // per_run)):
            path = out / f"result-{seed}-{number:03d}.json"
            if path.is_file():
                results.append(json.loads(path.read_text(encoding="utf-8")))
                continue
            rng = random.Random(seed * 1000 + number)
            config = chaos_config(out, cluster.tracking_uri, f"disturbed-{seed}-{number:03d}-{attempt}")
            planned = draw_kills(rng, min(per_run, kills - per_run * number), config.training.steps, WEIGHTS)
            rows = []
            for kill in disturbed_run(cluster, config, planned, rng):
                rows.append(vars(kill))
                print(
                    f"run {number} step {kill.step:3d} {kill.victim:8s} {kill.recovery:6.1f} s",
                    flush=True,
                )
            found = differences(expected, out / "runs" / config.name)
            print(f"run {number}: {'; '.join(found) or 'equal to the undisturbed run'}", flush=True)
            results.append({"kills": rows, "differences": found})
            path.write_text(json.dumps(results[-1], indent=1), encoding="utf-8")
    return results


def main() -> int:
    """Return the exit code: 0 nothing was lost, 1 something was, 2 it could not start, 130 interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=lasting_place, default="outputs/chaos", help="folder for all of it")
    parser.add_argument("--kills", type=int, default=100, help="kills over all runs")
    parser.add_argument("--per-run", type=int, default=10, help="kills of one run")
    parser.add_argument("--seed", type=int, default=0, help="of victims and steps")
    arguments = parser.parse_args()
    try:
        results = campaign(arguments.out.resolve(), arguments.kills, arguments.per_run, arguments.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table(results))
    lost = [line for result in results for line in result["differences"]]
    print(f"{sum(len(result['kills']) for result in results)} kills, {len(lost)} differences")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
