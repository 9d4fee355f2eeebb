#!/usr/bin/env bash
# A Ray cluster inside one SLURM job. A batch script sources this file and calls `start_cluster`, then
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
    fi
}

answers() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

# ---- The batch script's part, on the job's first node --------------------------------------------

# Starts a Ray node on every node of the allocation and returns when all have joined; sets cluster_gpus. Exits with 75
# (try again later) if they do not within COSA_WAIT seconds.
start_cluster() {
    : "${SLURM_JOB_ID:?run this with sbatch}"
    [ -x "$COSA_PYTHON" ] || { say "no interpreter at $COSA_PYTHON: run 'make install', or set COSA_PYTHON" >&2; exit 2; }
    local ip cpus
    ip=$(address_of_this_node) || { say "this node has no IPv4 address: set COSA_INTERFACE (now '$COSA_INTERFACE')" >&2; exit 2; }
    cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
    # Three ports a job, below those the system gives out by itself: the head, Ray's client server, the dashboard.
    export RAY_ADDRESS=$ip:$((20000 + SLURM_JOB_ID % 4000 * 3))
    # Mode and token both: a token alone, or one left in the user's folder, would be used by half of Ray's processes.
    RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_COLOR_PREFIX=0
    # A node would otherwise wait half a minute for work that has ended already.
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
    if [ -n "$COSA_INTERFACE" ]; then export GLOO_SOCKET_IFNAME=$COSA_INTERFACE NCCL_SOCKET_IFNAME=$COSA_INTERFACE; fi
    cluster_logs=$COSA_PROJECT/outputs/slurm/$SLURM_JOB_ID
    mkdir -p "$cluster_logs"
    ulimit -n "$(ulimit -Hn)"

    say "starting Ray on $SLURM_JOB_NUM_NODES node(s), head at $RAY_ADDRESS, logs in $cluster_logs"
    srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$cpus" \
        --kill-on-bad-exit=0 --output="$cluster_logs/node-%n.log" --open-mode=append bash "$COSA_PROJECT/slurm/ray_cluster.sh" &
    cluster_step=$!
    trap stop_cluster EXIT
    trap 'say "terminated by SLURM"; exit 143' TERM
    local deadline=$((SECONDS + COSA_WAIT))
    until answers "$RAY_ADDRESS"; do
        kill -0 "$cluster_step" 2>/dev/null || { say "no node could start Ray: see $cluster_logs" >&2; exit 75; }
        [ "$SECONDS" -lt "$deadline" ] || { say "no head at $RAY_ADDRESS after $COSA_WAIT s: see $cluster_logs" >&2; exit 75; }
        sleep 0.5
    done
    while_cluster_lives "$COSA_PYTHON" slurm/await_nodes.py "$SLURM_JOB_NUM_NODES" "$((deadline - SECONDS))" "$cluster_logs/gpus" || exit $?
    cluster_gpus=$(<"$cluster_logs/gpus")
    say "all $SLURM_JOB_NUM_NODES node(s) joined after $((SECONDS - deadline + COSA_WAIT)) s, with $cluster_gpus GPU(s)"
}

# Runs a command beside the cluster and returns its exit code, or 75 if the cluster ended first.
while_cluster_lives() {
    "$@" &
    cluster_driver=$!
    local code=0
    while kill -0 "$cluster_driver" 2>/dev/null; do
        if ! kill -0 "$cluster_step" 2>/dev/null; then
            say "the Ray cluster ended under '$1 $2': see $cluster_logs" >&2
            kill -TERM "$cluster_driver" 2>/dev/null || true
            wait "$cluster_driver" || true
            return 75
        fi
        sleep 1
    done
    wait "$cluster_driver" || code=$?
    return "$code"
}

stop_cluster() {
    trap - EXIT TERM
    [ -z "${cluster_driver:-}" ] || kill -TERM "$cluster_driver" 2>/dev/null || true
    # To the step, not to srun: srun would pass on a KILL, and the nodes could not clean up behind themselves.
    scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null || true
    local deadline=$((SECONDS + 20))
    while kill -0 "$cluster_step" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
    kill -TERM "$cluster_step" 2>/dev/null || true
    wait "$cluster_step" 2>/dev/null || true
}

# ---- One node's part ----------------------------------------------------------------------------

run_node() {
    local ip role temp=$COSA_TMP/ray_$SLURM_JOB_ID
    ip=$(address_of_this_node)
    ulimit -n "$(ulimit -Hn)"
    if [ "$SLURM_NODEID" -eq 0 ]; then
        # The dashboard listens on loopback only; without it, Ray Train's clean-up complains every few seconds.
        local port=${RAY_ADDRESS##*:}
        role=(--head --port="$port" --ray-client-server-port="$((port + 1))" --temp-dir="$temp"
            --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="$((port + 2))")
    else
        local deadline=$((SECONDS + COSA_WAIT))
        until answers "$RAY_ADDRESS"; do
            [ "$SECONDS" -lt "$deadline" ] || { say "no head at $RAY_ADDRESS after $COSA_WAIT s"; exit 75; }
            sleep 0.5
        done
        role=(--address="$RAY_ADDRESS")
    fi
    local gpus=0
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .); fi
    say "node $SLURM_NODEID of $SLURM_JOB_NUM_NODES at $ip: ${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE} CPU(s), $gpus GPU(s)"
    # Data is read from disk, not through the object store: one GiB is ample, the default is a third of the memory.
    env -u RAY_ADDRESS "$COSA_PYTHON" -m ray.scripts.scripts start "${role[@]}" --node-ip-address="$ip" \
        --num-cpus="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --num-gpus="$gpus" --object-store-memory=$((1 << 30)) \
        --min-worker-port=0 --max-worker-port=0 --disable-usage-stats --log-color=false --block &
    local ray=$! code=0 stopped=
    trap 'stopped=yes; kill -TERM "$ray" 2>/dev/null || true' TERM
    while kill -0 "$ray" 2>/dev/null; do wait "$ray" && code=0 || code=$?; done
    if [ -n "$stopped" ]; then
        say "node $SLURM_NODEID: Ray ended, as it was told to"
        rm -rf "$temp"
        exit 0
    fi
    # Ray's logs stay on a node where it ended by itself: somebody will want to read them.
    say "node $SLURM_NODEID: Ray ended with $code; its own logs: $temp"
    exit "$code"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then run_node; fi
