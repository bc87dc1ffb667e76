"""MM-Rec 7B: the last rung of the ladder.

    python train.py --config=configs/mmrec_7b.py --dry_run --devices=32 --tokens=2e11 --flops=4e14
    python train.py --config=configs/mmrec_7b.py --config.init_from=runs/large

9,822,228,480 parameters, for accelerators; not trained yet. docs/scaling.md has its cost.
"""

from configs import large


def get_config():
    config = large.get_config()
    config.name = "mmrec_7b"

    config.model.dim = 4_096
    config.model.num_layers = 24
    config.model.num_heads = 32
    return config
