"""tiny, 1,960,832 parameters: trained on two CPU cores in about a minute.

    python train.py --config=configs/tiny.py

Expected: 378 steps in 3 epochs; the mean training loss of the last epoch is about 0.63, the best
validation loss about 0.47.

To train on your own text:

    python train.py --config=configs/tiny.py --config.data.source=text \
        --config.data.path='books/*.txt' --workdir=runs/books

A config starts from the defaults and sets the knobs that differ or are worth showing. Any other
knob can be set in the same way, here or on the command line; `python train.py --help_config` lists
them all.
"""

from mmrec_jax.config import default_config


def get_config():
    config = default_config()
    config.name = "tiny"  # the workdir is runs/tiny unless --workdir says otherwise

    model = config.model
    model.vocab_size = 5_000  # V; the characters of a corpus use only some of them
    model.dim = 128  # D
    model.num_layers = 4  # L
    model.num_heads = 4  # H
    # In so short a training more memory does not pay: without a bank, the validation loss is 0.480
    # with S = C = 32, and 0.490 with S = 64. These are small enough that a window of 256 tokens
    # overflows them, so that the bank and saliency are trained.
    model.chunk_len = 16  # C
    model.short_term = 16  # S
    model.long_term = 8  # M
    model.dropout = 0.1
    model.saliency_queries = 64

    data = config.data
    data.source = "sample"  # generated sentences: no download
    data.tokenizer = "char"
    data.sample_chars = 64_600  # 126 steps of 2 x 256 tokens per epoch
    data.validation_fraction = 0.05
    data.test_fraction = 0.05

    train = config.train
    train.batch_size = 2  # B
    train.seq_len = 256  # T
    train.num_epochs = 3
    # The run that this one reproduces was trained with AdamW. Muon, the default, needs fewer steps.
    train.optimizer = "adamw"
    train.learning_rate = 3e-4
    train.initial_learning_rate = 3e-5
    train.final_learning_rate = 3e-5
    train.warmup_steps = 100
    train.weight_decay = 0.1
    train.b1 = 0.9
    train.b2 = 0.95
    train.clip_norm = 1.0
    train.patience = 3
    return config
