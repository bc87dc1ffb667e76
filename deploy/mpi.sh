#!/bin/bash
# Trains in processes that MPI launches:
#
#     N=2 HOSTS=hosts.txt deploy/mpi.sh --config=configs/base.py
#
# Change: the number of processes, one for each host, and the file that names the hosts; without
# HOSTS all run on this one. The hosts need this folder, with the workdir, and the cache at the same
# path. JAX knows Open MPI 4; every other MPI needs `pip install mpi4py`. With TERM=dumb the output
# has plain lines, though mpirun shows the processes a terminal.
#
# Tried with Open MPI 4.1.4, Open MPI 5.0.11 and MPICH 4.0.2 (where -x has to go and --hostfile is
# -f): two processes on one machine, without GPUs.
TERM=dumb exec mpirun -n "${N:-2}" ${HOSTS:+--hostfile "$HOSTS" --map-by node} -x TERM \
    .venv/bin/python train.py "$@"
