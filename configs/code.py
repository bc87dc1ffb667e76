"""Python's standard library, real files of up to 100,000 tokens and more that every machine has.

    python -m mmrec_jax.commands.prepare --config=configs/code.py
    python train.py --config=configs/code.py

reads the source files of at least 20,000 bytes of the Python that runs it. Each is a document; they
are in an order drawn from their names, and the last tenth is held out for validation.

To read the Linux kernel instead, straight from the archive that kernel.org publishes, which can
only be read in its order:

    python train.py --config=configs/code.py --config.data.path=linux-6.x.tar.xz \
        --config.data.files='*.c' --config.data.shuffle_documents=false --workdir=runs/linux

Decompressed with `unxz`, the .tar has an index, and its documents can be shuffled as well.
"""

import sysconfig

from configs import tiny


def get_config():
    config = tiny.get_config()
    config.name = "code"

    config.model.vocab_size = 2_048
    config.model.num_layers = 2
    config.model.chunk_len = 32
    config.model.short_term = 32
    config.model.long_term = 128
    config.model.dropout = 0.0
    config.model.saliency_queries = 256

    config.data.source = "text"
    config.data.path = sysconfig.get_paths()["stdlib"]
    config.data.files = "*.py"
    config.data.exclude = "site-packages"
    config.data.min_file_bytes = 20_000
    config.data.shuffle_documents = True
    config.data.tokenizer = "bpe"
    config.data.validation_fraction = 0.1
    config.data.test_fraction = 0.0

    config.train.batch_size = 4
    config.train.seq_len = 256
    # Rows read 2,048 tokens on, then start elsewhere. What is read on is read 32 steps later, so
    # that successive steps learn from different files.
    config.train.carry_memory = True
    config.train.carry_windows = 8
    config.train.carry_groups = 32
    config.train.num_steps = 2_000
    config.train.optimizer = "muon"
    config.train.learning_rate = 2e-3
    config.train.initial_learning_rate = 0.0
    config.train.final_learning_rate = 1e-4
    config.train.warmup_steps = 100
    config.train.eval_every = 0  # the validation split has 861,062 tokens
    config.train.eval_batch_size = 8
    config.train.patience = 0
    config.train.checkpoint_every = 500
    config.train.log_every = 100
    return config
