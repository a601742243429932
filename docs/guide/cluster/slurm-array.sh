#!/bin/bash
# A run shared by the tasks of a job array:  sbatch slurm-array.sh SUITE OUT
#SBATCH --job-name=advens
#SBATCH --array=1-4
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
srun advens run "$1" --out "$2" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
