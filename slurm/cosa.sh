#!/usr/bin/env bash
# One training run on N nodes. From the project's folder, which every node must see:
#   sbatch slurm/cosa.sh --recipe voc_released --data.shards SHARDS
#   sbatch --nodes=4 --gpus-per-node=8 --time=12:00:00 slurm/cosa.sh --recipe coco_released --data.shards SHARDS
# Everything after the script's name goes to jobs/train.py. The job ends with that program's exit code, or with 75
# if the Ray cluster could not be started or was lost. More in docs/slurm.md.
#
# ---- Settings a site must change: here, or on sbatch's command line, which wins -------------------
#SBATCH --job-name=cosa
#SBATCH --nodes=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# GPUs: take one '#' away and set the number a node has. Without GPUs the run trains on CPUs, one worker a node.
##SBATCH --gpus-per-node=4
# Most sites want a partition and an account as well:
##SBATCH --partition=gpu
##SBATCH --account=my_project
# ---- Leave these: one Ray node per machine; a job that SLURM starts again appends to its log -------
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append

set -euo pipefail

# ---- Settings a site may change, as environment variables -----------------------------------------
# COSA_PROJECT    the project's folder, if the job is not submitted from it
# COSA_SETUP      a file that is sourced first, such as one with `module load` lines; the nodes inherit what it exports
# COSA_PYTHON     interpreter of the environment, on a file system every node sees; or a script that runs it in a container
# COSA_INTERFACE  network interface between the nodes, such as ib0 (default: each node's first address)
# COSA_TMP        node-local folder for Ray's sockets and logs and for temporary files (default: /tmp)
# COSA_WAIT       seconds that all nodes have for joining
if [ -n "${COSA_SETUP:-}" ]; then
    [ -r "$COSA_SETUP" ] || { echo "cosa.sh: cannot read COSA_SETUP=$COSA_SETUP" >&2; exit 2; }
    set +eu # sites' files are seldom written for these
    source "$COSA_SETUP"
    set -eu
fi
export COSA_PROJECT=${COSA_PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}
export COSA_PYTHON=${COSA_PYTHON:-$COSA_PROJECT/.venv/bin/python}
export COSA_INTERFACE=${COSA_INTERFACE:-}
export COSA_TMP=${COSA_TMP:-/tmp}
export COSA_WAIT=${COSA_WAIT:-300}

[ -f "$COSA_PROJECT/slurm/ray_cluster.sh" ] || {
    echo "cosa.sh: no slurm/ray_cluster.sh in $COSA_PROJECT: submit from the project's folder, or set COSA_PROJECT" >&2
    exit 2
}
cd "$COSA_PROJECT"
source slurm/ray_cluster.sh

prepare_job
# A wrong option or recipe should not cost the start of a cluster.
"$COSA_PYTHON" jobs/train.py "$@" --print-config >/dev/null || {
    code=$?
    echo "cosa.sh: jobs/train.py ended with $code"
    exit "$code"
}
start_cluster

# One worker a GPU, or one a node on the CPU, unless the command line says otherwise.
workers=(--distributed.workers "$cluster_gpus")
[ "$cluster_gpus" -gt 0 ] || workers=(--distributed.workers "$SLURM_JOB_NUM_NODES")
for word; do
    case $word in --distributed.workers | --distributed.workers=*) workers=() ;; esac
done

code=0
while_cluster_lives "$COSA_PYTHON" -u jobs/train.py "$@" "${workers[@]}" || code=$?
echo "cosa.sh: jobs/train.py ended with $code"
exit "$code"
