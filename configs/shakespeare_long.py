"""Shakespeare's plays by characters for 20 epochs, with 1,879,784 parameters: hours on a CPU.

    python train.py --config=configs/shakespeare_long.py

or, as in configs/shakespeare.py, from a text whose last tenth is the validation split:

    python train.py --config=configs/shakespeare_long.py --config.data.source=text \\
        --config.data.path=tinyshakespeare.txt

Expected on that file (docs/results.md): validation loss 1.37, with carried memory, after about two
hours on one core.
"""

from configs import shakespeare


def get_config():
    config = shakespeare.get_config()
    config.name = "shakespeare_long"

    config.model.dim = 152
    # Against learning a small text by heart. More dropout, or more noise, is worse
    # (docs/results.md).
    config.model.dropout = 0.1
    config.train.token_noise = 0.05

    config.train.batch_size = 64
    config.train.carry_groups = 7  # 7 times 64 stretches of 2,048 characters are nearly all
    config.train.num_steps = 5_000
    config.train.warmup_steps = 200
    config.train.final_learning_rate = 4e-5
    config.train.eval_every = 0
    config.train.keep_checkpoints = 1
    return config
