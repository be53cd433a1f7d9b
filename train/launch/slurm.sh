#!/bin/bash
# Two machines of eight GPUs under SLURM:
#
#   sbatch train/launch/slurm.sh configs/cifar10.toml runs/cifar10 [--train.batch_size 512 ...]
#
# Change the lines below to your cluster. The run folder must be on a file system that all machines see. Two minutes
# before its time is up SLURM sends SIGUSR1 to every process; the run saves its state and ends, and the job is queued
# again: the same command goes on from there, bit for bit on the same number of GPUs. torchrun makes 1 of every exit
# code, so what happened is read from status.json (75: stopped in time, with the state saved).
#SBATCH --job-name=diffunet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
config=$1 run=$2
shift 2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:29500" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m train "$config" --out "$run" "$@"
code=$?
if grep -q '"exit_code": 75' "$run/status.json"; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $code
