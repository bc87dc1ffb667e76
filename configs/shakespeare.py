"""Shakespeare's plays by characters, with D 128 and L 4: a few minutes on two CPU cores.

    python train.py --config=configs/shakespeare.py

reads TFDS's tiny_shakespeare, which must be prepared once where TensorFlow is installed (the error
message gives the command). To read any text instead, with its last tenth as the validation split:

    python train.py --config=configs/shakespeare.py --config.data.source=text \
        --config.data.path=tinyshakespeare.txt

Expected on that file (docs/results.md): validation loss 1.49 after 2,000 steps of 12 x 64
characters, with carried memory.
"""

from configs import tiny


def get_config():
    config = tiny.get_config()
    config.name = "shakespeare"

    config.model.vocab_size = 128
    config.model.short_term = 32
    config.model.long_term = 96
    config.model.oldest_age = 8  # sequences of 64 characters do not show how use falls with age
    config.model.dropout = 0.0

    config.data.source = "tfds"
    config.data.tfds_name = "tiny_shakespeare"
    config.data.validation_fraction = 0.1  # if the source has no splits of its own
    config.data.test_fraction = 0.0

    config.train.batch_size = 12
    config.train.seq_len = 64
    # Rows read 2,048 characters on, then start elsewhere. What is read on is read 40 steps later,
    # so that successive steps learn from different plays. (40 times 12 such stretches are nearly
    # all of the text.)
    config.train.carry_memory = True
    config.train.carry_windows = 32
    config.train.carry_groups = 40
    config.train.num_steps = 2_000
    config.train.optimizer = "muon"
    config.train.learning_rate = 2e-3
    config.train.initial_learning_rate = 0.0
    config.train.final_learning_rate = 1e-4
    config.train.eval_every = 500
    config.train.eval_batch_size = 16
    config.train.patience = 0
    config.train.checkpoint_every = 500
    config.train.log_every = 100
    return config
