"""The ladder: tiny, then mini grown from it, then small from that.

    python train.py --config=configs/ladder.py
    python train.py --config=configs/ladder.py --config.rungs="('tiny', 'mini')"

The same command goes on where it was interrupted. Every rung is a run of its own, in
runs/ladder/tiny and so on, and has a section here, so that any knob can be overridden:
--config.mini.train.num_tokens= says how long a rung is trained, --config.mini.train.patience= and
min_improvement= when validation loss is flat enough to climb on. The corpus is the same for all.
"""

import ml_collections

from configs import base, large, medium, mini, mmrec_7b, small, tiny


def get_config():
    config = ml_collections.ConfigDict()
    config.name = "ladder"  # the workdir is runs/<name> unless --workdir says otherwise
    config.rungs = ("tiny", "mini", "small")  # of the sections below, from the smallest
    config.data = tiny.get_config().data

    for size in (tiny, mini, small, base, medium, large, mmrec_7b):
        rung = size.get_config()
        config[rung.name] = {"model": rung.model, "train": rung.train, "growth": rung.growth}
    return config
