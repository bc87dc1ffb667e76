"""The ladder: tiny, then mini grown from tiny, then small grown from mini.

    python train.py --config=configs/ladder.py
    python train.py --config=configs/ladder.py --config.rungs="('tiny', 'mini')"

The same command resumes an interrupted ladder. Every rung is a separate run, in runs/ladder/tiny
and so on, with its own section here, so that any knob can be overridden:
--config.mini.train.num_tokens= sets how long a rung is trained; --config.mini.train.patience= and
min_improvement= set when its validation loss counts as flat. All rungs share one corpus.
"""

import ml_collections

from configs import base, large, medium, mini, mmrec_7b, small, tiny


def get_config():
    config = ml_collections.ConfigDict()
    config.name = "ladder"  # the workdir is runs/<name> unless --workdir says otherwise
    config.rungs = ("tiny", "mini", "small")  # sections below, from the smallest
    config.data = tiny.get_config().data

    for size in (tiny, mini, small, base, medium, large, mmrec_7b):
        rung = size.get_config()
        config[rung.name] = {name: rung[name] for name in ("model", "train", "growth", "mesh")}
    return config
