#!/usr/bin/env bash
# A run that outlives its time limit:  sbatch examples/slurm.sh CONFIG RUN [more options of petomo run]
#SBATCH --job-name=petomo
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@600
set -u
config=$1 run=$2
shift 2

resume=()
if [ -e "$run/state.json" ]; then resume=(--resume); fi

# in the background, for bash handles a signal only between commands
stopped=no
trap 'stopped=yes; kill -TERM "$worker"' TERM
petomo run "$config" --out "$run" "${resume[@]}" "$@" &
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
