#!/bin/bash
# Trains on all hosts of a Cloud TPU slice, which must exist:
#
#     TPU=name ZONE=zone deploy/tpu_pod.sh --config=configs/base.py
#
# Change: FOLDER, which is this repository on a disk that all hosts have mounted (NFS), with a
# .venv made by `pip install -e '.[tpu]'`. What a slice will need is known before it is paid for:
# python train.py --config=... --dry_run --topology=v5p:2x4x4
#
# Not tried: there was no TPU. On its hosts JAX finds the others by itself.
FOLDER=${FOLDER:-/shared/mmrec_jax}
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd $FOLDER && MMREC_CACHE_DIR=$FOLDER/cache .venv/bin/python train.py $*"
