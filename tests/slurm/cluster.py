"""A real SLURM cluster on one machine: every node lives in namespaces of its own, on a bridge.

    python -m tests.slurm.cluster up [--nodes 2] [--name hand]      # prints what to export
    python -m tests.slurm.cluster down [--name hand]

A node has its own address, host name, processes, /tmp and /dev/shm, so it looks like a machine. Everything
that belongs to a cluster lies in /var/tmp/cosa-slurm-NAME and is recorded there; `down` ends and removes that
and nothing else. It needs root (see machine.py).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from pathlib import Path

from tests.slurm.client import Cluster, CommandError, shared_folders, wait_until
from tests.slurm.machine import obstacle, run
from tests.slurm.processes import Process
from tests.slurm.record import PLACE, Record, base_of
from tests.slurm.settings import FREEZER, write_settings

DEADLINE = 60.0


class ClusterError(RuntimeError):
    """The cluster cannot be started or taken down; the message is one sentence."""


def _do(*command: str) -> None:
    process = run(*command)
    if process.returncode:
        raise ClusterError(f"{' '.join(command)}: {process.stderr.strip()}")


def _free_network() -> str:
    """First three numbers of a private network that this machine has no address in."""
    used = run("ip", "-4", "-o", "addr").stdout
    for third in range(1, 255):
        if f" 10.77.{third}." not in used:
            return f"10.77.{third}"
    raise ClusterError("no free network 10.77.x: take down another cluster")


def _start_munge(record: Record) -> None:
    base = record.base
    places = {
        "key-file": base / "munge" / "key",
        "socket": base / "run" / "munge.socket",
        "pid-file": base / "run" / "munged.pid",
        "log-file": base / "log" / "munged.log",
        "seed-file": base / "munge" / "seed",
    }
    options = [f"--{name}={path}" for name, path in places.items()]
    record.start("munged.out", "munged", "--foreground", "--num-threads=2", "--force", *options)
    log = places["log-file"]
    wait_until(places["socket"].exists, DEADLINE, lambda: f"munged did not start: {log.read_text()}")


def _connect_node(record: Record, network: str, k: int) -> None:
    """Give node k a network namespace with a cable to the bridge, and a folder for its /tmp."""
    name, node = record.name, record.nodes[k - 1]
    _do("ip", "netns", "add", node)
    _do("ip", "link", "add", f"{name}v{k}", "type", "veth", "peer", "name", "eth0", "netns", node)
    _do("ip", "link", "set", f"{name}v{k}", "master", f"{name}br", "up")
    _do("ip", "-n", node, "addr", "add", f"{network}.{k}/24", "dev", "eth0")
    _do("ip", "-n", node, "link", "set", "eth0", "up")
    (record.base / "tmp" / node).mkdir(parents=True)
    (record.base / "tmp" / node).chmod(0o1777)


def _boot_node(record: Record, k: int) -> None:
    """Start node k's process 1 in its namespaces."""
    node = record.nodes[k - 1]
    own = ("-m", "-u", "-i", "-p", "-f", "--mount-proc", "--propagation", "private", "--kill-child=KILL")
    script = ("bash", str(Path(__file__).with_name("node.sh")), str(record.base), node, *shared_folders())
    pid = record.start(f"{node}.out", "nsenter", f"--net=/run/netns/{node}", "unshare", *own, *script)
    record.holders[k - 1 : k] = [pid]
    record.write()


def lose_node(name: str, k: int) -> None:
    """Let node k of a cluster go down at once, with all that runs on it; its /tmp stays, as on a disk."""
    Process.of(Record.read(name).holders[k - 1]).kill()


def return_node(name: str, k: int, empty_tmp: bool) -> None:
    """Start node k again; many machines empty their /tmp then."""
    record = Record.read(name)
    if empty_tmp:
        for left in (record.base / "tmp" / record.nodes[k - 1]).iterdir():
            shutil.rmtree(left)
    _boot_node(record, k)


def up(name: str, nodes: int = 2, cpus: int = 4, kill_wait: int = 30) -> Cluster:
    """Start a cluster and wait until all its nodes are idle.

    Args:
        name: at most 8 letters and digits; two clusters of different names do not meet.
        nodes: number of nodes.
        cpus: CPUs that each node claims to have.
        kill_wait: seconds that an ending job has between TERM and KILL (SLURM's default).

    Raises:
        ClusterError: the machine cannot, the name is taken, or a command failed.
        TimeoutError: the nodes did not come up. Nothing is left behind in either case.
    """
    base = base_of(name)
    if not (name.isalnum() and len(name) <= 8):
        raise ClusterError(f"name {name!r}: at most 8 letters and digits, as network devices carry it")
    if reason := obstacle():
        raise ClusterError(reason)
    try:
        base.mkdir(mode=0o755)
    except FileExistsError:
        raise ClusterError(f"a cluster named {name} is in {base}: take it down first") from None
    names = [f"{name}n{k}" for k in range(1, nodes + 1)]
    record = Record(name, names, Process.of(os.getpid()))
    record.write()
    try:
        network = _free_network()
        write_settings(base, name, network, names, cpus, kill_wait)
        _do("ip", "link", "add", f"{name}br", "type", "bridge")
        _do("ip", "addr", "add", f"{network}.254/24", "dev", f"{name}br")
        _do("ip", "link", "set", f"{name}br", "up")
        _start_munge(record)
        record.start("slurmctld.out", "slurmctld", "-D", "-c")
        for k in range(1, nodes + 1):
            _connect_node(record, network, k)
            _boot_node(record, k)
        _await_nodes(Cluster(name), names)
    except BaseException:
        down(name)
        raise
    return Cluster(name)


def _await_nodes(cluster: Cluster, names: list[str]) -> None:
    states = ""

    def idle() -> bool:
        nonlocal states
        try:
            states = cluster.command("sinfo", "-h", "-N", "-p", "debug", "-o", "%N %t")
        except CommandError as error:
            states = str(error)
        return states.split() == [word for name in names for word in (name, "idle")]

    wait_until(idle, DEADLINE, lambda: f"the nodes are not idle: {states}")


def down(name: str) -> None:
    """End a cluster and remove everything that belongs to it.

    Raises:
        ClusterError: there is none of this name, or something could not be removed.
    """
    try:
        record = Record.read(name)
    except FileNotFoundError:
        raise ClusterError(f"no cluster named {name} in {PLACE}") from None
    # Killing what holds a node's namespaces takes every process of the node along.
    for process in reversed(record.processes):
        process.kill()
    # By their outer end: a deleted network namespace can keep its cable for minutes after killed connections.
    for device in (*(f"{name}v{k}" for k in range(1, len(record.nodes) + 1)), f"{name}br"):
        if Path(f"/sys/class/net/{device}").exists():
            _do("ip", "link", "del", device)
    for node in record.nodes:
        if Path(f"/run/netns/{node}").exists():
            _do("ip", "netns", "del", node)
        _remove_cgroup(FREEZER / f"slurm_{node}")
    shutil.rmtree(record.base)


def _remove_cgroup(folder: Path) -> None:
    """Remove a cgroup and those below it; its killed processes may take a moment to leave."""
    if not folder.is_dir():
        return

    def gone() -> bool:
        try:
            for parent, _, _ in os.walk(folder, topdown=False):
                os.rmdir(parent)
        except OSError:
            return False
        return True

    wait_until(gone, DEADLINE, lambda: f"{folder} still holds processes")


def sweep() -> None:
    """Take down the clusters that a killed test run left: those whose owner lives no more."""
    for folder in PLACE.glob("cosa-slurm-*"):
        name = folder.name.removeprefix("cosa-slurm-")
        of_a_test = re.fullmatch(r"t\d+", name) and (folder / "cluster.json").is_file()
        if of_a_test and not Record.read(name).owner.lives():
            down(name)


def main() -> int:
    """Take a cluster up or down by hand; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="number of nodes (2)")
    parser.add_argument("--cpus", type=int, default=4, metavar="N", help="CPUs that a node claims (4)")
    parser.add_argument("--name", default="hand", help="name of the cluster (hand)")
    arguments = parser.parse_args()
    begin = time.monotonic()
    try:
        if arguments.action == "down":
            down(arguments.name)
            return 0
        cluster = up(arguments.name, arguments.nodes, arguments.cpus)
    except (ClusterError, CommandError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"# {arguments.nodes} nodes idle after {time.monotonic() - begin:.1f} s; shared folder {cluster.work}"
    )
    print(f"export SLURM_CONF={base_of(arguments.name)}/slurm.conf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
