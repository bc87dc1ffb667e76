"""PG-19, complete books: byte pairs, with memory carried from window to window.

    python -m mmrec_jax.commands.prepare --config=configs/pg19.py
    python train.py --config=configs/pg19.py

reads TFDS's pg19, which must be prepared once where TensorFlow is installed (the error message
gives the command). To read a folder of books instead:

    python train.py --config=configs/pg19.py --config.data.source=text --config.data.path=books
"""

from configs import c4


def get_config():
    config = c4.web_text()
    config.name = "pg19"

    config.data.source = "tfds"
    config.data.tfds_name = "pg19"
    config.data.field = "book_text"  # for "tfds"
    config.data.validation_fraction = 0.01  # for "text"
    config.data.test_fraction = 0.01

    config.train.carry_memory = True
    config.train.carry_windows = 16
    return config
