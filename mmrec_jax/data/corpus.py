"""What a corpus is: documents, in pieces, with contiguous training, validation and test splits.

A corpus is a stream of pieces, so that its size does not matter. Its splits are contiguous, in that
order: a validation split taken from between training sentences would flatter the model.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmrec_jax.config import DataConfig

SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")


class Piece(NamedTuple):
    """A document, or a part of one."""

    text: str
    begins: bool  # whether a document begins here


class Part(NamedTuple):
    """A stretch of the corpus and how it is shared between splits."""

    pieces: Callable[[], Iterator[Piece]]  # reads it, from its start, each time
    shares: tuple[tuple[str, float], ...]  # splits in order, and their shares of the characters


class Corpus(NamedTuple):
    """All the text of a run."""

    parts: tuple[Part, ...]
    files: tuple[Path, ...] = ()  # the content depends on these alone; none: on the config alone


def split_shares(config: DataConfig) -> tuple[tuple[str, float], ...]:
    """The share of the characters that each split gets where a corpus has no splits of its own."""
    held_out = config.validation_fraction + config.test_fraction
    return (
        ("train", 1 - held_out),
        ("validation", config.validation_fraction),
        ("test", config.test_fraction),
    )


def split_pieces(part: Part, total: int) -> Iterator[tuple[str, Piece]]:
    """The pieces of a part, cut where a split ends, each with the name of its split.

    Args:
        part: what to read.
        total: its number of characters.
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
