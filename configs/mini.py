"""mini, 10,454,528 parameters: the second rung of the ladder, grown from a trained tiny.

    python train.py --config=configs/tiny.py
    python train.py --config=configs/mini.py --config.init_from=runs/tiny

Expected: validation loss 0.464 at the start, equal to tiny's on the same windows, and 0.284 after
4 epochs, a few minutes on two CPU cores.
"""

from configs import tiny


def get_config():
    config = tiny.get_config()
    config.name = "mini"

    config.model.vocab_size = 10_000
    config.model.dim = 256
    config.model.num_layers = 6
    config.model.num_heads = 4

    config.train.batch_size = 1
    config.train.seq_len = 2_048
    config.train.num_epochs = 4
    config.train.learning_rate = 1e-3
    config.train.initial_learning_rate = 1e-4
    config.train.final_learning_rate = 1e-4
    config.train.eval_batch_size = 4
    return config
