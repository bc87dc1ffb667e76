"""medium: the fifth rung of the ladder; adds the low-rank term of the decay (DPG).

    python train.py --config=configs/medium.py --dry_run
    python train.py --config=configs/medium.py --config.init_from=runs/base

1,416,742,912 parameters, for accelerators; not trained yet.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.name = "medium"

    config.model.dim = 2_048
    config.model.num_layers = 16
    config.model.num_heads = 16
    config.model.use_dpg = True
    config.model.remat = True

    config.train.batch_size = 32
    config.train.seq_len = 16_384
    return config
