#!/usr/bin/env bash
# What a training and a sweep have in common as SLURM jobs: the site's settings, a name that outlives a restart, the
# warning before the time limit or a preemption, and the restart. cosa.sh and sweep.sh source this file, set what they
# need and call `run_job PROGRAM OPTIONS...`. Exits with the program's code; after `scontrol requeue` SLURM ends the script.
set -euo pipefail

# The site's own file first, then defaults of what it has not set.
if [ -n "${COSA_SETUP:-}" ]; then
    [ -r "$COSA_SETUP" ] || { echo "job.sh: cannot read COSA_SETUP=$COSA_SETUP" >&2; exit 2; }
    set +eu # sites' files are seldom written for these
    source "$COSA_SETUP"
    set -eu
fi
export COSA_PYTHON=${COSA_PYTHON:-$COSA_PROJECT/.venv/bin/python}
export COSA_INTERFACE=${COSA_INTERFACE:-}
export COSA_TMP=${COSA_TMP:-/tmp}
export COSA_WAIT=${COSA_WAIT:-300}
COSA_GRACE=${COSA_GRACE:-75}
COSA_RESTARTS=${COSA_RESTARTS:-10}
restarts=${SLURM_RESTART_COUNT:-0}
source "$COSA_PROJECT/slurm/ray_cluster.sh"

# Whether an option is among the words: given NAME WORDS...
given() {
    local name=$1 word
    shift
    for word; do
        case $word in "$name" | "$name="*) return 0 ;; esac
    done
    return 1
}

# A GPU whose loader has too few CPUs stands still: better no job than one that takes five times as long.
check_cpus() {
    if [ "$gpus_a_node" -eq 0 ] || given --distributed.cpus_per_worker "${options[@]}"; then return; fi
    if [ "$((cpus_a_node / gpus_a_node))" -lt 6 ]; then
        say "$cpus_a_node CPU(s) for $gpus_a_node GPU(s) on a node: training needs 6 for each, better 12: sbatch --cpus-per-task=$((12 * gpus_a_node)), or, to go on with these, --distributed.cpus_per_worker after the script's name" >&2
        exit 2
    fi
}

# Checks the options, which should not cost the start of a cluster, and adds to `options` the run's name and, in an array,
# its seed. The name is kept for the restarts of this job, which are to go on with the same run.
choose_name() {
    local shown name code=0 kept=$COSA_PROJECT/outputs/slurm/$SLURM_JOB_ID/name
    if given --resume "${options[@]}"; then return; fi
    if [ "$restarts" -gt 0 ] && [ -s "$kept" ]; then
        options+=(--name "$(<"$kept")" --restarted)
    else
        shown=$("$COSA_PYTHON" "$program" "${options[@]}" ${plans:+--plan "${SLURM_JOB_NUM_NODES}x${gpus_a_node}x$cpus_a_node"} --print-config) || code=$?
        [ "$code" -eq 0 ] || { say "$program ended with $code"; exit "$code"; }
        sed -n 's/^# //p' <<<"$shown"
        name=$(sed -n "s/^name: *//p" <<<"$shown" | tail -n 1 | tr -d "'\"")
        name=${name:-slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}
        name=$name${SLURM_ARRAY_TASK_ID:+-s$SLURM_ARRAY_TASK_ID}
        mkdir -p "${kept%/*}"
        echo "$name" >"$kept"
        options+=(--name "$name")
    fi
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then options+=(--seed "$SLURM_ARRAY_TASK_ID"); fi
    say "run $(<"$kept"), start $((restarts + 1)) of job $SLURM_JOB_ID"
}

# SLURM's warning (#SBATCH --signal): the program saves and ends. Before it runs there is nothing to save.
heed_warning() {
    warned=$SECONDS
    say "warned by SLURM: time limit or preemption"
    if [ -n "$running" ]; then kill -USR1 "$cluster_driver" 2>/dev/null || true; else start_again 75; fi
}

# Called every second while the program runs: one that cannot save in time is ended, and goes on from its last
# checkpoint, since the job must be requeued before SLURM ends it.
watch_warning() {
    if [ -z "$warned" ]; then return; fi
    local late=$((SECONDS - warned - COSA_GRACE))
    if [ "$late" -ge 0 ] && [ -z "$pressed" ]; then
        pressed=yes
        say "no checkpoint within $COSA_GRACE s of the warning: going on from an older one"
        kill -TERM "$cluster_driver" 2>/dev/null || true
    fi
    if [ "$late" -ge 10 ]; then kill -KILL "$cluster_driver" 2>/dev/null || true; fi
}

# Takes the cluster down and has SLURM start this job again, under the same number. Never returns; the code is the
# script's if SLURM does not. A job that never comes to save anything must not be started for ever.
start_again() {
    local code=$1
    if [ "$code" -eq 75 ] && [ "$restarts" -ge "$COSA_RESTARTS" ]; then say "started $((restarts + 1)) times: giving up"; exit 75; fi
    stop_cluster
    # scontrol ends this script; without the right to requeue it goes on.
    say "asking SLURM to start this job again"
    scontrol requeue "$this_job" && sleep 60
    say "SLURM did not; go on with --resume $(cat "$COSA_PROJECT/outputs/slurm/$SLURM_JOB_ID/name" 2>/dev/null)"
    exit "$code"
}

# The whole job.
run_job() {
    local code=0
    program=$1 options=("${@:2}") warned="" pressed="" running="" every_second=watch_warning
    prepare_job
    trap heed_warning USR1
    check_cpus
    choose_workers
    choose_name
    start_cluster
    running=yes
    while_cluster_lives "$COSA_PYTHON" -u "$program" "${options[@]}" || code=$?
    running=""
    say "$program ended with $code"
    if [ "$code" -eq 0 ]; then exit 0; fi
    if [ "$code" -gt 2 ] && [ -n "$warned" ]; then start_again "$code"; fi
    # At a preemption SLURM tells the nodes' processes only, and the program fails with its cluster.
    if [ "$code" -eq 75 ] || [ -e "$CLUSTER_TOLD" ]; then start_again 75; fi
    exit "$code"
}
