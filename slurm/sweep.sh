#!/usr/bin/env bash
# One sweep on N nodes, its trials side by side. From the project's folder, which every node must see:
#   sbatch --nodes=2 slurm/sweep.sh --space loss_weights --recipe voc_mini --trials 8 --data.shards SHARDS
# Everything after the script's name goes to sweeps/run.py. Warnings, restarts and exit codes are those of cosa.sh: a job
# that SLURM starts again goes on with its sweep and repeats no finished trial. More in docs/slurm.md.
#
# ---- Settings a site must change: here, or on sbatch's command line, which wins -------------------
#SBATCH --job-name=cosa-sweep
#SBATCH --nodes=1
#SBATCH --time=24:00:00
# CPUs a node: 12 for each GPU, 6 at least (their loaders decode the pictures).
#SBATCH --cpus-per-task=8
# GPUs: take one '#' away and set the number a node has. Each trial gets one, or one node's CPUs where there are none.
##SBATCH --gpus-per-node=4
# Most sites want a partition and an account as well:
##SBATCH --partition=gpu
##SBATCH --account=my_project
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
# COSA_RESTARTS   starts after which a job that lost its Ray cluster is given up (default: 10)
export COSA_PROJECT=${COSA_PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}
[ -f "$COSA_PROJECT/slurm/job.sh" ] || {
    echo "sweep.sh: no slurm/job.sh in $COSA_PROJECT: submit from the project's folder, or set COSA_PROJECT" >&2
    exit 2
}
cd "$COSA_PROJECT"
source slurm/job.sh

# One worker a trial, unless the command line says otherwise. A node's CPUs are shared by its trials, one or one a GPU;
# each trial's driver, which only waits, counts as one CPU.
choose_workers() {
    local cpus=$((cpus_a_node / (gpus_a_node > 0 ? gpus_a_node : 1) - 1))
    if given --resume "${options[@]}" || given --distributed.workers "${options[@]}"; then return; fi
    options+=(--distributed.workers 1)
    given --distributed.cpus_per_worker "${options[@]}" || options+=(--distributed.cpus_per_worker "$((cpus > 0 ? cpus : 1))")
}

run_job sweeps/run.py "$@"
