#!/bin/bash
#SBATCH --job-name=balancer-7a671755d1-5eaff51101
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=65536M
#SBATCH --gpus-per-node=1
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --time=12:00:00
#SBATCH --output=balancer-7a671755d1-5eaff51101-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120

# Submit it again after it was stopped, ran out of time or lost a node: the run goes on where it was.
set -eo pipefail
module load cuda
set -u # not before: what activates an environment may use variables that are not set
umask 077
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# Whoever reaches Ray can run code as you: it asks for a token that is made here, for this job only.
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

names="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head="${names%%$'\n'*}"
on_head=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head")
addresses="$("${on_head[@]}" hostname -I)"
ip="${addresses%% *}"
port=$((20000 + SLURM_JOB_ID % 20000))
address="$ip:$port"

# Only you can enter this folder, and nobody can guess its name on the other nodes. Short, for Ray's sockets.
work="$(mktemp -d /tmp/balancer-XXXXXX)"
trap 'rm -rf "$work"; kill $(jobs -p) 2>/dev/null || true' EXIT
cat >"$work/job.json" <<'END_OF_CONFIG'
{
 "classes": {
  "a": {
   "prompts": [
    "$HOME `id` 'x'"
   ]
  }
 },
 "target": {
  "per_class": 2
 },
 "actors": {
  "generators": 2
 }
}
END_OF_CONFIG

start=(ray start --block --disable-usage-stats --num-cpus=8 --num-gpus=1)
"${on_head[@]}" "${start[@]}" --head --node-ip-address="$ip" --port="$port" \
    --temp-dir="$work/ray" --include-dashboard=false &
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    sleep "${RAY_HEAD_WAIT_S:-15}"
    srun --overlap --nodes="$((SLURM_JOB_NUM_NODES - 1))" --ntasks="$((SLURM_JOB_NUM_NODES - 1))" \
        --exclude="$head" "${start[@]}" --address="$address" &
fi

# A run takes the nodes that are there when it starts.
"${on_head[@]}" python -c '
import sys, time, ray
address, wanted = sys.argv[1], int(sys.argv[2])
give_up = time.monotonic() + 300
while True:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        while sum(node["Alive"] for node in ray.nodes()) < wanted:
            if time.monotonic() > give_up:
                sys.exit(f"not all of the {wanted} nodes have joined Ray within 300 s")
            time.sleep(1)
        break
    except ConnectionError:
        if time.monotonic() > give_up:
            sys.exit(f"Ray does not answer at {address}")
        time.sleep(1)
' "$address" "$SLURM_JOB_NUM_NODES"

"${on_head[@]}" python -m balancer run "$work"/job.json --out 's3://bucket/it'"'"'s a run' --limit 8 --address "$address" &
run=$!
stopped=
trap 'stopped=yes; kill -TERM "$run" 2>/dev/null || true' TERM
code=0
wait "$run" || code=$?
if [ -n "$stopped" ] && [ "$code" -eq 143 ]; then
    code=0
    wait "$run" || code=$? # the signal ended the first wait, not the run
fi
if [ "$code" -eq 3 ]; then
    echo "ended with images missing; not a failure"
    code=0
fi
exit "$code"
