"""Where text comes from: one module per kind of source, each with a function `open_corpus`.

A source yields documents in pieces (data/corpus.py) and does not depend on tokens or batches.
"""

import importlib

from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import Corpus

_MODULES = {
    "sample": "sample",
    "text": "text_files",
    "jsonl": "text_files",
    "python_docs": "python_docs",
    "tfds": "tfds",
}


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that a config names.

    Raises:
        UserError: the file or dataset does not exist. Errors in a file are found when it is read.
    """
    # Imported only on demand: TFDS takes seconds.
    source = importlib.import_module(f"{__name__}.{_MODULES[config.source]}")
    return source.open_corpus(config)
