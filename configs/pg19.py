"""PG-19, complete books, with its published splits: byte pairs, with carried memory.

    python -m mmrec_jax.commands.prepare --config=configs/pg19.py
    python train.py --config=configs/pg19.py
    python eval.py --workdir=runs/pg19 --split=test

reads the folders pg19/train, pg19/validation and pg19/test of text files, as DeepMind publishes
them (28,602, 50 and 100 books). A folder of other books has no splits; its end is held out:

    python train.py --config=configs/pg19.py --config.data.path=books \
        --config.data.validation_path= --config.data.test_path= --workdir=runs/books

Where TensorFlow has prepared the pg19 of TFDS (the error message gives the command), use
--config=configs/pg19.py:tfds.

Compare `perplexity per word` with published figures. For the test split: Compressive Transformer
33.6, Transformer-XL 36.3 (both in Rae et al. 2020, "Compressive Transformers for Long-Range
Sequence Modelling"). Those models also predict parts of words, and their loss is divided by the
number of words.

Not trained with this code yet.
"""

from configs import c4


def get_config(source="text"):
    config = c4.web_text()
    config.name = "pg19"

    config.data.source = source
    if source == "tfds":
        config.data.tfds_name = "pg19"
        config.data.field = "book_text"
    else:
        config.data.path = "pg19/train"
        config.data.validation_path = "pg19/validation"
        config.data.test_path = "pg19/test"
        config.data.files = "*.txt"
    config.data.validation_fraction = 0.01  # where the source has no splits
    config.data.test_fraction = 0.01

    config.train.carry_memory = True
    config.train.carry_windows = 16
    return config
