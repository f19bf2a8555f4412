#!/usr/bin/env bash
#SBATCH --partition=gpu         # yours
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
# Train on several machines of a Slurm cluster; change the first three lines:
#   sbatch tools/slurm_train.sh CONFIG [arguments of tools/train.py]
# A job that is queued again goes on from the last checkpoint.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '7,9s/^# //p' "$0" >&2; exit 2; }
config=$1
shift
# Slurm runs a copy of this file: the project is where it was submitted
cd "${SLURM_SUBMIT_DIR:-.}"
machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${machines%%$'\n'*}  # the first
export NNODES=$SLURM_NNODES PORT=$((20000 + SLURM_JOB_ID % 10000))
exec srun bash tools/dist_train.sh "$config" "${SLURM_GPUS_ON_NODE:-8}" --resume "$@"
