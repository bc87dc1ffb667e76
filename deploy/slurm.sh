#!/bin/bash
# Trains on the nodes of a Slurm cluster:
#
#     sbatch deploy/slurm.sh --config=configs/base.py
#
# Change: the nodes and the GPUs of each, of which JAX gives every task one; the time limit. For a
# run that takes longer than the limit, submit it several times: each job continues from the
# checkpoint of the one before. All nodes need this folder, with the workdir, and the cache.
#
# Tried with Slurm 22.05: two nodes without GPUs (two slurmd on one machine), with a SIGTERM.
#SBATCH --job-name=mmrec
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300         # so many seconds before the limit, the run saves and ends
#SBATCH --dependency=singleton    # jobs of this name run one after another
#SBATCH --requeue                 # after a node has failed
#SBATCH --open-mode=append
#SBATCH --output=%x.log

srun --kill-on-bad-exit=0 .venv/bin/python train.py "$@"
