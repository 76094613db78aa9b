#!/usr/bin/env bash
# A run that outlives its time limit:  sbatch examples/slurm.sh CONFIG RUN [more options of petomo run]
# One process on one GPU; for more of them, on one node or several:  sbatch --ntasks=8 examples/slurm.sh ...
#SBATCH --job-name=petomo
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@600
set -u
config=$1 run=$2
shift 2

resume=()
if [ -e "$run/state.json" ]; then resume=(--resume); fi

# several tasks find each other by these four; srun starts them, hands signals on, and gives back their code
launch=(petomo)
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
  WORLD_SIZE=$SLURM_NTASKS
  export MASTER_ADDR MASTER_PORT WORLD_SIZE
  # shellcheck disable=SC2016  # the ranks are known inside the tasks only
  launch=(srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec petomo "$@"' petomo)
fi

# in the background, for bash handles a signal only between commands
stopped=no
trap 'stopped=yes; kill -TERM "$worker"' TERM
"${launch[@]}" run "$config" --out "$run" "${resume[@]}" "$@" &
worker=$!
wait "$worker"
code=$?
# the signal ends the first wait: wait on until petomo has saved
if [ "$stopped" = yes ]; then
  wait "$worker"
  code=$?
fi

# 130: stopped by the signal, and ready to go on
if [ "$code" -eq 130 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
