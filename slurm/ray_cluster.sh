#!/usr/bin/env bash
# A Ray cluster inside one SLURM job. A batch script sources this file and calls `prepare_job`, `start_cluster`, then
# `while_cluster_lives COMMAND...`; the cluster ends with the script. Executed (by srun, once a node), it is that node's part.
# Reads COSA_PYTHON, COSA_PROJECT, COSA_INTERFACE, COSA_TMP and COSA_WAIT (see cosa.sh) and SLURM's own variables.
# Ports and folders carry the job's number, so that jobs sharing a node do not meet; Ray's own stop command is never
# called, since it ends every Ray of the user on the host.
set -euo pipefail

say() { echo "$(date +%T) $(hostname -s) $*"; }

address_of_this_node() {
    if [ -n "$COSA_INTERFACE" ]; then
        ip -4 -o addr show dev "$COSA_INTERFACE" | awk '{ sub("/.*", "", $4); print $4; exit }'
    else
        hostname -I | tr ' ' '\n' | grep -m 1 -E '^[0-9.]+$'
    fi | grep . || { say "this node has no IPv4 address: set COSA_INTERFACE (now '$COSA_INTERFACE')" >&2; return 2; }
}

# The job's folder on this node: Ray's sockets and logs, and everybody's temporary files.
make_node_folder() {
    node_folder=$COSA_TMP/cosa_$SLURM_JOB_ID
    mkdir -p -m 700 "$node_folder" && [ -O "$node_folder" ] && mkdir -p "$node_folder/tmp" || {
        say "cannot use $node_folder for temporary files: set COSA_TMP to a node-local folder" >&2
        exit 2
    }
    export TMPDIR=$node_folder/tmp
}

# This job for SLURM's commands: the plain number of an array's last task is that of the whole array.
this_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
this_job=${this_job:-${SLURM_JOB_ID:-}}

# ---- What a node has -----------------------------------------------------------------------------

node_cpus() { echo "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}"; }

# GPUs of this job on this node. SLURM names them in CUDA_VISIBLE_DEVICES; where it does not (whole nodes without GRES, or
# its flag no_gpu_env), the driver is asked. Ends with 2 where GPUs were asked for and there are none, or where those of the
# node may be another job's.
node_gpus() {
    local count=0 asked=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-${SLURM_GPUS:-${SLURM_JOB_GPUS:+number $SLURM_JOB_GPUS}}}}
    case ${CUDA_VISIBLE_DEVICES-unset} in
        unset) count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true ;;
        "" | NoDevFiles | -1) ;;
        *) count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .) || true ;;
    esac
    if [ "$count" -eq 0 ] && [ -n "$asked" ] && [ "$asked" != 0 ]; then
        say "SLURM gives this job GPUs ($asked), but there are none on this node (CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-not set}, nvidia-smi -L)" >&2
        return 2
    fi
    if [ "$count" -gt 0 ] && [ -z "${CUDA_VISIBLE_DEVICES+set}" ] && [ -z "$asked" ] && ! node_is_whole; then
        say "this node has $count GPU(s), and SLURM does not say which are this job's: ask for them (--gpus-per-node), or set CUDA_VISIBLE_DEVICES in COSA_SETUP (empty: none)" >&2
        return 2
    fi
    echo "$count"
}

# Whether the job has all CPUs of this node.
node_is_whole() {
    local all
    all=$(scontrol show node "${SLURMD_NODENAME:-}" 2>/dev/null | grep -o 'CPUTot=[0-9]*') || return 1
    [ "${all#CPUTot=}" -eq "${SLURM_CPUS_ON_NODE:-0}" ]
}

answers() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

# ---- The batch script's part, on the job's first node --------------------------------------------

# Checks the settings and makes the job's folder on this node; whatever ends the script, the folder and the cluster go.
# Sets gpus_a_node and cpus_a_node, of this node, which stand for all.
prepare_job() {
    : "${SLURM_JOB_ID:?run this with sbatch}"
    [ -x "$COSA_PYTHON" ] || { say "no interpreter at $COSA_PYTHON: run 'make install', or set COSA_PYTHON" >&2; exit 2; }
    # Ray's sockets lie 70 bytes further down, and a socket's path has 107.
    [ "${#COSA_TMP}" -le 24 ] || { say "COSA_TMP=$COSA_TMP is too long for sockets: 24 letters at most" >&2; exit 2; }
    make_node_folder
    cluster_driver= cluster_step=
    trap stop_cluster EXIT
    gpus_a_node=$(node_gpus) || exit 2
    cpus_a_node=$(node_cpus)
    trap 'say "terminated by SLURM"; exit 143' TERM
}

# Starts a Ray node on every node of the allocation and returns when all have joined. Exits with 75 (try again later) if
# they do not within COSA_WAIT seconds, and with 2 if one of them lacks its GPUs.
start_cluster() {
    local ip cluster_gpus
    ip=$(address_of_this_node) || exit 2
    # Three ports a job, below those the system gives out by itself: the head, Ray's client server, the dashboard.
    export RAY_ADDRESS=$ip:$((20000 + SLURM_JOB_ID % 4000 * 3))
    # What frees a lost run's resources asks the dashboard; without the address it may find another job's.
    export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$((${RAY_ADDRESS##*:} + 2))
    # Mode and token both: a token alone, or one left in the user's folder, would be used by half of Ray's processes.
    RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_COLOR_PREFIX=0
    # A node would otherwise wait half a minute for work that has ended already.
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
    export_ray_settings
    if [ -n "$COSA_INTERFACE" ]; then export GLOO_SOCKET_IFNAME=$COSA_INTERFACE NCCL_SOCKET_IFNAME=$COSA_INTERFACE; fi
    cluster_logs=$COSA_PROJECT/outputs/slurm/$SLURM_JOB_ID
    mkdir -p "$cluster_logs"
    export CLUSTER_COMPLETE=$cluster_logs/gpus # written when all nodes have joined
    export CLUSTER_TOLD=$cluster_logs/told # written by a node that was told to end
    rm -f "$CLUSTER_COMPLETE" "$CLUSTER_TOLD"
    ulimit -n "$(ulimit -Hn)"

    say "starting Ray on $SLURM_JOB_NUM_NODES node(s), head at $RAY_ADDRESS, logs in $cluster_logs"
    # --no-kill: whether the job outlives a lost node is sbatch's to say, not the step's.
    env -u TMPDIR srun --overlap --no-kill --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$cpus_a_node" \
        --kill-on-bad-exit=0 --output="$cluster_logs/node-%n.log" --open-mode=append bash "$COSA_PROJECT/slurm/ray_cluster.sh" &
    cluster_step=$!
    local deadline=$((SECONDS + COSA_WAIT))
    until answers "$RAY_ADDRESS"; do
        kill -0 "$cluster_step" 2>/dev/null || { say "no node could start Ray: see $cluster_logs" >&2; exit 75; }
        [ "$SECONDS" -lt "$deadline" ] || { say "no head at $RAY_ADDRESS after $COSA_WAIT s: see $cluster_logs" >&2; exit 75; }
        sleep 0.5
    done
    # A head that starts again takes along who has just connected to it: hence the loop.
    local code=1
    until [ "$code" -eq 0 ] || [ "$code" -eq 75 ] || [ "$SECONDS" -ge "$deadline" ]; do
        code=0
        while_cluster_lives "$COSA_PYTHON" slurm/await_nodes.py "$SLURM_JOB_NUM_NODES" "$((deadline - SECONDS))" "$CLUSTER_COMPLETE" || code=$?
    done
    [ "$code" -eq 0 ] || { say "the Ray cluster was not complete after $((SECONDS - deadline + COSA_WAIT)) s: see $cluster_logs" >&2; exit 75; }
    cluster_gpus=$(<"$CLUSTER_COMPLETE")
    say "all $SLURM_JOB_NUM_NODES node(s) joined after $((SECONDS - deadline + COSA_WAIT)) s, with $cluster_gpus GPU(s)"
    if [ "$cluster_gpus" -lt "$((gpus_a_node * SLURM_JOB_NUM_NODES))" ] && [ -z "${COSA_MIXED_NODES:-}" ]; then
        say "not every node has the $gpus_a_node GPU(s) of this one: see $cluster_logs; leave the node out (sbatch --exclude), or set COSA_MIXED_NODES=yes to go on with these" >&2
        exit 2
    fi
}

# Ray's workers inherit their settings from its nodes: the same ones as on a private cluster, unless the user has set others.
export_ray_settings() {
    local settings name value
    settings=$("$COSA_PYTHON" -c 'from cosa_dist.distributed.cluster import ENVIRONMENT
for setting in ENVIRONMENT.items(): print(*setting)')
    while read -r name value; do
        if [ -z "${!name+set}" ]; then export "$name=$value"; fi
    done <<<"$settings"
}

# Runs a command beside the cluster and returns its exit code, or 75 if the cluster ended first; calls `every_second`.
while_cluster_lives() {
    "$@" &
    cluster_driver=$!
    local code=0
    while kill -0 "$cluster_driver" 2>/dev/null; do
        if ! kill -0 "$cluster_step" 2>/dev/null; then
            say "the Ray cluster ended under '$1 $2': see $cluster_logs" >&2
            kill -TERM "$cluster_driver" 2>/dev/null || true
            wait "$cluster_driver" || true
            cluster_driver=
            return 75
        fi
        "${every_second:-:}"
        sleep 1
    done
    wait "$cluster_driver" || code=$?
    cluster_driver=
    return "$code"
}

# Ends driver and cluster, and removes what is temporary. SLURM gives half a minute (KillWait) before it kills.
stop_cluster() {
    trap - EXIT TERM
    local deadline=$((SECONDS + 25))
    if [ -n "$cluster_driver" ]; then kill -TERM "$cluster_driver" 2>/dev/null || true; fi
    if [ -n "$cluster_step" ]; then
        # To the step, not to srun: srun would pass on a KILL, and the nodes could not clean up behind themselves.
        scancel --signal=TERM "$this_job" 2>/dev/null || true
        await_end "$cluster_step" "$deadline" || kill -TERM "$cluster_step" 2>/dev/null || true
        wait "$cluster_step" 2>/dev/null || true
    fi
    if [ -n "$cluster_driver" ]; then
        await_end "$cluster_driver" "$deadline" || kill -KILL "$cluster_driver" 2>/dev/null || true
    fi
    # Only this: the logs of a Ray that ended by itself stay beside it.
    rm -rf "${node_folder:?}/tmp"
    rmdir --ignore-fail-on-non-empty "$node_folder" 2>/dev/null || true
}

await_end() {
    while kill -0 "$1" 2>/dev/null; do
        [ "$SECONDS" -lt "$2" ] || return 1
        sleep 0.2
    done
}

# ---- One node's part ----------------------------------------------------------------------------

# Options of `ray start` that differ between the head and the other nodes; returns when the head can be joined.
choose_role() {
    if [ "$SLURM_NODEID" -eq 0 ]; then
        # The dashboard listens on loopback only; without it, Ray Train's clean-up complains every few seconds.
        local port=${RAY_ADDRESS##*:}
        role=(--head --port="$port" --ray-client-server-port="$((port + 1))" --temp-dir="$node_folder/ray"
            --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="$((port + 2))")
        return
    fi
    until answers "$RAY_ADDRESS"; do
        [ "$SECONDS" -lt "$COSA_WAIT" ] || { say "no head at $RAY_ADDRESS after $COSA_WAIT s"; exit 75; }
        sleep 0.5
    done
    role=(--address="$RAY_ADDRESS")
}

# Runs this node's Ray until it ends; sets ray_code, and ray_stopped if it was told to end.
ray_until_its_end() {
    local ip=$1 gpus=$2 ray
    choose_role
    # Data is read from disk, not through the object store: one GiB is ample, the default is a third of the memory.
    env -u RAY_ADDRESS "$COSA_PYTHON" -m ray.scripts.scripts start "${role[@]}" --node-ip-address="$ip" \
        --num-cpus="$(node_cpus)" --num-gpus="$gpus" --object-store-memory=$((1 << 30)) \
        --min-worker-port=0 --max-worker-port=0 --disable-usage-stats --log-color=false --block &
    ray=$!
    ray_code=0
    trap 'ray_stopped=yes; touch "$CLUSTER_TOLD"; kill -TERM "$ray" 2>/dev/null || true' TERM
    while kill -0 "$ray" 2>/dev/null; do wait "$ray" && ray_code=0 || ray_code=$?; done
}

run_node() {
    local ip gpus ray_code=0 ray_stopped=
    trap 'exit 143' TERM
    make_node_folder
    ip=$(address_of_this_node) || exit 2
    ulimit -n "$(ulimit -Hn)"
    gpus=$(node_gpus) || gpus=0 # the batch script counts them all
    say "node $SLURM_NODEID of $SLURM_JOB_NUM_NODES at $ip: $(node_cpus) CPU(s), $gpus GPU(s)"
    ray_until_its_end "$ip" "$gpus"
    # Ray gives itself 30 s to start: too little on a busy node, or while its files come from a slow file system.
    while [ -z "$ray_stopped" ] && [ ! -e "$CLUSTER_COMPLETE" ] && [ "$SECONDS" -lt "$COSA_WAIT" ]; do
        say "node $SLURM_NODEID: Ray did not start (exit code $ray_code); trying again"
        sleep 1
        ray_until_its_end "$ip" "$gpus"
    done
    if [ -n "$ray_stopped" ]; then
        say "node $SLURM_NODEID: Ray ended, as it was told to"
        rm -rf "${node_folder:?}"
        exit 0
    fi
    # Ray's logs stay on a node where it ended by itself: somebody will want to read them.
    say "node $SLURM_NODEID: Ray ended with $ray_code; its own logs: $node_folder/ray"
    if [ "$SLURM_NODEID" -eq 0 ]; then # no other node is of use without the head
        trap '' TERM
        scancel --signal=TERM "$this_job.$SLURM_STEP_ID" || true
    fi
    exit "$ray_code"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then run_node; fi
