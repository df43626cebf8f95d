#!/usr/bin/env bash
# Trains on several hosts with Slurm, one task per host, and is requeued when it was preempted.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config configs/digits.py --workdir /shared/run
#
#SBATCH --job-name=mobilevitv2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# A checkpoint is saved well within the two minutes before the time limit.
#SBATCH --signal=TERM@120
set -uo pipefail

# JAX gives a task of Slurm one GPU, its local number; the task of a whole host has all of them.
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# Not --kill-on-bad-exit: the tasks end together, and one that ends with 75 a moment before the
# others must not turn theirs into that of a kill. A task that is stopped is killed after --wait.
srun --kill-on-bad-exit=0 --wait=60 --label python -u train.py --distributed "$@"
status=$?

if [[ $status -eq 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
