#!/usr/bin/env bash
# A training run, or a grid of them, as a SLURM job. Submit it from the repository's root:
#
#   sbatch launch/slurm.sh --config=configs/NAME.py --workdir=W --config.data_dir=D
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh ...  (one task per GPU)
#   sbatch --array=1-12 launch/slurm.sh --config=configs/NAME.py --workdir=W --data_dir=D
#
# The first two take the flags of recjax.train; an array takes those of launch/local.py and its
# task N runs trial N of the grid (`python launch/local.py ... --dry_run | wc -l` tells how many
# there are). W and D lie on storage that every node mounts. Two minutes before the time limit, or
# when the job is preempted, the run saves itself and the job goes back to the queue, at most
# $RECJAX_TRIES times (100). Where compute nodes have no network, make the environment once on a
# login node (RECJAX_JAX too):
#   bash -euc '. launch/environment.sh; recjax_environment'
#SBATCH --job-name=recjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# SLURM runs a copy of this file from a folder of its own.
cd "${SLURM_SUBMIT_DIR:?is set by sbatch: submit this script, do not run it}"
if [[ ! -f launch/environment.sh ]]; then
  echo "error: submit from the root of recjax, not from $PWD" >&2
  exit 2
fi
# shellcheck source=launch/environment.sh
. launch/environment.sh
export RECJAX_JAX="${RECJAX_JAX-jax[cuda13]}"
recjax_environment

if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
  command="$("$PYTHON" launch/local.py "$@" --print_line="$SLURM_ARRAY_TASK_ID")" || exit 2
else
  command="$(printf "%q " "$PYTHON" -m recjax.train "$@")"
fi
# jax.distributed finds coordinator, processes and rank in SLURM's variables, one GPU for each task.
if ((${SLURM_NTASKS:-1} > 1)); then export RECJAX_DISTRIBUTED=1; fi
# srun does not take this over from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

code=0
srun --kill-on-bad-exit=1 bash -c "exec $command" || code=$?
if [[ $code -eq 0 || $code -eq 2 ]]; then exit "$code"; fi
if ((${SLURM_RESTART_COUNT:-0} + 1 >= ${RECJAX_TRIES:-100})); then
  echo "exit code $code, given up after ${SLURM_RESTART_COUNT:-0} restarts" >&2
  exit "$code"
fi
echo "exit code $code, back to the queue" >&2
scontrol requeue "${SLURM_JOB_ID:?}"
