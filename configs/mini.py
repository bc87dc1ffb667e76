"""The second rung of the ladder: D 256, L 6; grown from a trained tiny.

python train.py --config=configs/tiny.py
python train.py --config=configs/mini.py --config.init_from=runs/tiny
"""

from configs import tiny


def get_config():
    config = tiny.get_config()
    config.name = "mini"

    config.model.vocab_size = 10_000
    config.model.dim = 256
    config.model.num_layers = 6
    config.model.num_heads = 4
    return config
