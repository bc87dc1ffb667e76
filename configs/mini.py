"""mini, 10,454,528 parameters: the second rung of the ladder, grown from a trained tiny.

    python train.py --config=configs/tiny.py
    python train.py --config=configs/mini.py --config.init_from=runs/tiny

Expected: validation loss 0.453 at the start, equal to tiny's on the same windows, and 0.278 after
3 epochs, a few minutes on two CPU cores.
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
    # Muon needs fewer steps than AdamW, and its rate nearly holds at other widths; so do the others
    # with base_dim. All larger rungs inherit this.
    config.train.optimizer = "muon"
    config.train.base_dim = 128  # tiny's
    config.train.learning_rate = 6e-3  # the highest tried; 4e-3 ends at 0.282
    config.train.initial_learning_rate = 0.0
    config.train.final_learning_rate = 1e-4
    config.train.eval_batch_size = 4
    return config
