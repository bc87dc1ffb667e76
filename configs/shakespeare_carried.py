"""Shakespeare's plays by characters, with carried memory: half an hour on two CPU cores.

    python train.py --config=configs/shakespeare_carried.py

or, as in configs/shakespeare.py, from a text whose last tenth is the validation split:

    python train.py --config=configs/shakespeare_carried.py --config.data.source=text \\
        --config.data.path=tinyshakespeare.txt

With the long-term memory of revision cd208bf, the validation loss on that file was 1.42 (give or
take 0.01), with carried memory (docs/results.md). It has not been measured again since.
"""

from configs import shakespeare


def get_config():
    config = shakespeare.get_config()
    config.name = "shakespeare_carried"

    config.model.chunk_len = 64
    config.model.short_term = 64
    config.model.long_term = 64
    config.model.oldest_age = 64
    config.model.dropout = 0.15

    config.train.carry_windows = 2
    config.train.carry_groups = 1
    config.train.batch_size = 8
    config.train.seq_len = 256
    config.train.num_steps = 8_000
    config.train.optimizer = "adamw"
    config.train.learning_rate = 4e-3
    config.train.eval_every = 0
    config.train.log_every = 100
    return config
