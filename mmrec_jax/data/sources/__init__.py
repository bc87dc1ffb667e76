"""Where text comes from: one module per kind of source, each with a function `open_corpus`.

A source yields documents in pieces (data/corpus.py) and does not depend on tokens or batches.
"""

import importlib

from mmrec_jax.config import FILE_SOURCES, DataConfig
from mmrec_jax.data.corpus import Corpus


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that a config names.

    Raises:
        UserError: the file or dataset does not exist. Errors in a file are found when it is read.
    """
    module = "text_files" if config.source in FILE_SOURCES else config.source
    # Imported only on demand: TFDS takes seconds.
    return importlib.import_module(f"{__name__}.{module}").open_corpus(config)
