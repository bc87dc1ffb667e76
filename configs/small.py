"""small, 52,263,424 parameters: the third rung of the ladder, grown from a trained mini.

    python train.py --config=configs/small.py --config.init_from=runs/mini

Expected on tiny's sample corpus: validation loss 0.275 at the start, which differs from mini's in
the length of the windows, and 0.273 after one epoch; ten minutes on two CPU cores.
"""

from configs import mini


def get_config():
    config = mini.get_config()
    config.name = "small"

    config.model.vocab_size = 20_000
    config.model.dim = 512
    config.model.num_layers = 8
    config.model.scan_layers = "never"  # faster on CPUs
    config.model.num_heads = 8

    config.train.seq_len = 4_096
    config.train.num_epochs = 1
    config.train.learning_rate = 2e-3
    config.growth.warmup_steps = 5
    config.train.eval_batch_size = 2
    return config
