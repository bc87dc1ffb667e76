"""The language reference that comes with every CPython: one document per topic."""

import pydoc_data.topics
from collections.abc import Iterator

from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import Corpus, Part, Piece, split_shares


def open_corpus(config: DataConfig) -> Corpus:
    """The topics in alphabetical order."""

    def pieces() -> Iterator[Piece]:
        for _, text in sorted(pydoc_data.topics.topics.items()):
            yield Piece(text, begins=True)

    return Corpus((Part(pieces, split_shares(config)),))
