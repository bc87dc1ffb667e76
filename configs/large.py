"""large: the sixth rung of the ladder; adds the auxiliary loss that predicts the state (UBOO).

    python train.py --config=configs/large.py --dry_run
    python train.py --config=configs/large.py --config.init_from=runs/medium

4,645,327,872 parameters, for accelerators; not trained yet.
"""

from configs import medium


def get_config():
    config = medium.get_config()
    config.name = "large"

    config.model.dim = 3_072
    config.model.num_layers = 20
    config.model.num_heads = 24
    config.model.use_uboo = True

    config.train.seq_len = 32_768
    return config
