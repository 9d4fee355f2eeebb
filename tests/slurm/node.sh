#!/usr/bin/env bash
# One node of a test cluster, as process 1 of its own namespaces: node.sh BASE NODE [FOLDER...]
# It gets its own host name, /tmp (kept in BASE/tmp/NODE, where tests can look) and /dev/shm; every FOLDER below /tmp
# is shared with the machine. Then it runs slurmd, and stays, as a machine does, should slurmd end.
set -euo pipefail

base=$1 node=$2
shift 2

hostname "$node"
ip link set lo up
mount --bind "$base/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm

private=$base/tmp/$node
for folder; do
    mkdir -p "$private/${folder#/tmp/}"
    mount --rbind "$folder" "$private/${folder#/tmp/}"
done
mount --rbind "$private" /tmp
cd /

SLURM_CONF=$base/slurm.conf slurmd -D -s -N "$node" &
sleep infinity &
wait
