"""MM-Rec 7B: the last rung of the ladder.

    python train.py --config=configs/mmrec_7b.py --dry_run --devices=32 --tokens=2e11 --device=H100
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

    # Texts of 32,768 tokens, read in 16 steps with carried memory: as many tokens per step as large
    # has, in a sixteenth of the recurrence's steps (docs/scaling.md).
    config.train.batch_size = 512
    config.train.seq_len = 2_048
    config.train.carry_memory = True
    config.train.carry_windows = 16
    return config
