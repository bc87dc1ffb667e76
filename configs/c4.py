"""C4, English web text: byte pairs, a model of the size of mini.

    python -m mmrec_jax.commands.prepare --config=configs/c4.py
    python train.py --config=configs/c4.py

TFDS prepares c4/en with TensorFlow and Apache Beam, which downloads and writes hundreds of GB. If
that is done, give its folder as --config.data.tfds_dir; `tfds_split` selects a part of it. C4's
original JSON lines work as well, without TensorFlow:

    python train.py --config=configs/c4.py --config.data.source=jsonl \
        --config.data.path='c4/en/c4-train.0000*.json.gz'
"""

import ml_collections

from configs import tiny


def get_config():
    config = web_text()
    config.name = "c4"
    config.data.source = "tfds"
    config.data.tfds_name = "c4/en"
    config.data.tfds_split = "train[:1%]"
    return config


def web_text() -> ml_collections.ConfigDict:
    """The config that corpora of many short documents share."""
    config = tiny.get_config()

    config.model.vocab_size = 10_000
    config.model.dim = 256
    config.model.num_layers = 6
    config.model.chunk_len = 64
    config.model.short_term = 64
    config.model.long_term = 64
    config.model.dropout = 0.0

    config.data.tokenizer = "bpe"
    # Used if the source has no splits of its own; small shares are enough for a large corpus.
    config.data.validation_fraction = 0.001
    config.data.test_fraction = 0.001

    config.train.batch_size = 16
    config.train.seq_len = 512
    config.train.num_epochs = 1
    config.train.learning_rate = 1e-3
    config.train.initial_learning_rate = 0.0
    config.train.final_learning_rate = 1e-4
    config.train.warmup_steps = 1_000
    config.train.eval_every = 2_000
    config.train.eval_batch_size = 16
    config.train.patience = 0
    config.train.checkpoint_every = 1_000
    return config
