"""A corpus: documents, in pieces, with contiguous training, validation and test splits.

A corpus is a stream of pieces, so it may be of any size. Its splits are contiguous, in that order:
validation text taken from between training sentences would make the model look better than it is.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmrec_jax.config import DataConfig

HELD_OUT = ("validation", "test")
SPLITS = ("train", *HELD_OUT)


class Piece(NamedTuple):
    """A document, or a part of one."""

    text: str
    begins: bool  # whether it begins a document


class Part(NamedTuple):
    """A part of the corpus, and how it is divided into splits."""

    pieces: Callable[[], Iterator[Piece]]  # each call reads the part from its start
    shares: tuple[tuple[str, float], ...]  # splits in order, with their shares of the characters


class Corpus(NamedTuple):
    """All the text of a run."""

    parts: tuple[Part, ...]
    files: tuple[Path, ...] = ()  # the content depends only on these; if none, only on the config


def split_shares(config: DataConfig) -> tuple[tuple[str, float], ...]:
    """Each split's share of the characters, for a corpus that has no splits of its own."""
    validation = 0.0 if config.validation_path else config.validation_fraction
    test = 0.0 if config.test_path else config.test_fraction
    return ("train", 1 - validation - test), ("validation", validation), ("test", test)


def split_pieces(part: Part, total: int) -> Iterator[tuple[str, Piece]]:
    """The pieces of a part, cut where a split ends, each with the name of its split.

    `total` is the part's number of characters.
    """
    ends, end = [], total
    for name, share in reversed(part.shares):
        ends.append((end, name))
        end -= round(total * share)
    position, (end, name) = 0, ends.pop()
    begins = True
    for text, starts_document in part.pieces():
        begins |= starts_document
        while text:
            while position == end and ends:
                (end, name), begins = ends.pop(), True
            here, text = text[: end - position], text[end - position :]
            yield name, Piece(here, begins)
            position += len(here)
            begins = False
