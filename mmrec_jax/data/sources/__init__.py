"""Where text comes from: one file for each `data.source`, each of which opens a corpus.

A source gives documents, in pieces (data/corpus.py). It knows nothing of tokens or batches.
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
        UserError: there is no such file or dataset. What is in a file shows when it is read.
    """
    # Imported only when it is asked for: TFDS takes seconds.
    source = importlib.import_module(f"{__name__}.{_MODULES[config.source]}")
    return source.open_corpus(config)
