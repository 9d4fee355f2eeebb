"""SLURM's configuration for a cluster whose nodes are namespaces of one machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

FREEZER = Path("/sys/fs/cgroup/freezer")

SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}({network}.254)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={base}/run/munge.socket,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType={proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait={kill_wait}
MinJobAge=3600
JobRequeue=1
SchedulerParameters=batch_sched_delay=1,sched_interval=5,sched_min_interval=200000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""

CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
"""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def freezer_works(name: str) -> bool:
    """Whether SLURM can hold its jobs in a cgroup (version 1), as production clusters do."""
    trial = FREEZER / f"trial_{name}"
    try:
        trial.mkdir()
    except OSError:
        return False
    trial.rmdir()
    return True


def write_settings(base: Path, name: str, network: str, nodes: list[str], cpus: int, kill_wait: int) -> None:
    """Write slurm.conf, cgroup.conf, munge's key and the nodes' hosts file.

    Args:
        base: the cluster's folder.
        name: the cluster's name.
        network: first three numbers of its addresses; node k has `.k`, the machine `.254`.
        nodes: names of the nodes.
        cpus: CPUs that each node claims, whatever the machine has.
        kill_wait: seconds between TERM and KILL.
    """
    for folder in ("munge", "run", "state", "log", "work", *(f"spool/{node}" for node in nodes)):
        (base / folder).mkdir(parents=True)
    # Munge refuses a key, or a folder around it, that others may write to.
    (base / "munge").chmod(0o700)
    key = base / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    addresses = [f"{network}.{k} {node}" for k, node in enumerate(nodes, 1)]
    hosts = ["127.0.0.1 localhost", f"{network}.254 {host}", *addresses]
    (base / "hosts").write_text("\n".join(hosts) + "\n")
    cgroup = freezer_works(name)
    if cgroup:
        (base / "cgroup.conf").write_text(CGROUP_CONF)
    lines = [
        f"NodeName={node} NodeAddr={network}.{k} Port=17001 CPUs={cpus} RealMemory=4000"
        for k, node in enumerate(nodes, 1)
    ]
    text = SLURM_CONF.format(
        name=name,
        host=host,
        network=network,
        port=free_port(),
        base=base,
        proctrack="proctrack/cgroup" if cgroup else "proctrack/linuxproc",
        kill_wait=kill_wait,
        nodes="\n".join(lines),
    )
    (base / "slurm.conf").write_text(text)
