#!/usr/bin/env bash
# One training run on N nodes. From the project's folder, which every node must see:
#   sbatch --gpus-per-node=8 --cpus-per-task=96 slurm/cosa.sh --recipe voc_gpu --data.shards SHARDS
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=96 --time=12:00:00 slurm/cosa.sh --recipe coco_gpu --data.shards SHARDS
#   sbatch --array=0-2 --gpus-per-node=4 --cpus-per-task=48 slurm/cosa.sh --recipe voc_released --data.shards SHARDS    # seeds 0, 1, 2
# Everything after the script's name goes to jobs/train.py. Before its time limit and at a preemption the run saves,
# and SLURM starts the job again, which goes on with the same run; the same after a lost node. The job ends with the
# program's exit code, or with 75 if the Ray cluster could not be started or was lost. More in docs/slurm.md.
#
# ---- Settings a site must change: here, or on sbatch's command line, which wins -------------------
#SBATCH --job-name=cosa
#SBATCH --nodes=1
#SBATCH --time=24:00:00
# CPUs a node: 12 for each GPU, 6 at least (their loaders decode the pictures).
#SBATCH --cpus-per-task=8
# GPUs: take one '#' away and set the number a node has. Without GPUs the run trains on CPUs, one worker a node.
##SBATCH --gpus-per-node=4
# Most sites want a partition and an account as well:
##SBATCH --partition=gpu
##SBATCH --account=my_project
# With elastic workers (--distributed.workers "[4, 16]") a job may go on without a lost node:
##SBATCH --no-kill
# ---- Leave these: one Ray node per machine, a warning in time, and a job that may be started again and appends to its log
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append

set -euo pipefail

# ---- Settings a site may change, as environment variables -----------------------------------------
# COSA_PROJECT    the project's folder, if the job is not submitted from it
# COSA_SETUP      a file that is sourced first, such as one with `module load` lines; the nodes inherit what it exports
# COSA_PYTHON     interpreter of the environment, on a file system every node sees; or a script that runs it in a container
# COSA_INTERFACE  network interface between the nodes, such as ib0 (default: each node's first address)
# COSA_TMP        node-local folder for Ray's sockets and logs and for temporary files (default: /tmp)
# COSA_WAIT       seconds that all nodes have for joining (default: 300)
# COSA_GRACE      seconds after SLURM's warning in which the program has to save (default: 75, with a warning of 120)
# COSA_MIXED_NODES  yes: nodes may have fewer GPUs than the first one (default: such a job is refused)
# COSA_RESTARTS   starts after which a job that lost its Ray cluster, or never came to train, is given up (default: 10)
export COSA_PROJECT=${COSA_PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}
[ -f "$COSA_PROJECT/slurm/job.sh" ] || {
    echo "cosa.sh: no slurm/job.sh in $COSA_PROJECT: submit from the project's folder, or set COSA_PROJECT" >&2
    exit 2
}
cd "$COSA_PROJECT"
source slurm/job.sh

# One worker a GPU, of as many as share the batch evenly, or one a node on the CPU, unless the command line says otherwise.
choose_workers() {
    local workers=0
    [ "$gpus_a_node" -gt 0 ] || workers=$SLURM_JOB_NUM_NODES
    given --distributed.workers "${options[@]}" || options+=(--distributed.workers "$workers")
}

plans=yes # jobs/train.py shows how the nodes share the run, or refuses, before they start

run_job jobs/train.py "$@"
