"""Where text comes from: documents of a training, a validation and a test split.

sample       generated sentences, no file needed
text         UTF-8 files (data/text_files.py)
jsonl        JSON lines, a document each
python_docs  the language reference that every CPython carries
tfds         a TensorFlow dataset, without TensorFlow (data/tfds_source.py)

A corpus is a stream of pieces, so that its size does not matter. Its splits are contiguous, in that
order: a validation split taken from between training sentences would flatter the model.
"""

import pydoc_data.topics
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmrec_jax.config import DataConfig
from mmrec_jax.data import text_files
from mmrec_jax.data.text_files import Piece

SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")


class Part(NamedTuple):
    """A stretch of the corpus and how it is shared between splits."""

    pieces: Callable[[], Iterator[Piece]]  # reads it, from its start, each time
    shares: tuple[tuple[str, float], ...]  # splits in order, and their shares of the characters


class Corpus(NamedTuple):
    parts: tuple[Part, ...]
    files: tuple[Path, ...] = ()  # the content depends on these alone; none: on the config alone


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that a config names.

    Raises:
        UserError: there is no such file or dataset. What is in a file shows when it is read.
    """
    match config.source:
        case "sample":
            return _sample(config.sample_seed, config.sample_chars)
        case "python_docs":
            return Corpus((Part(_python_docs, _fractions(config)),))
        case "tfds":
            from mmrec_jax.data import tfds_source  # slow to import

            return tfds_source.open_corpus(config, _fractions(config))
    read = text_files.read_text if config.source == "text" else text_files.read_jsonl
    files = text_files.matching_files(config.path, config.source)

    def pieces() -> Iterator[Piece]:
        for path in files:
            yield from read(path) if config.source == "text" else read(path, config.field)

    return Corpus((Part(pieces, _fractions(config)),), tuple(files))


def _fractions(config: DataConfig) -> tuple[tuple[str, float], ...]:
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


# --- Python's documentation ---


def _python_docs() -> Iterator[Piece]:
    topics = pydoc_data.topics.topics
    for name in sorted(topics):
        yield Piece(topics[name], begins=True)


# --- generated sentences ---

_PEOPLE = (
    "sailor", "teacher", "farmer", "painter", "doctor", "soldier", "singer", "hunter", "baker",
    "miller", "captain", "widow",
)  # fmt: skip
_MOODS = ("old", "young", "quiet", "clever", "gentle", "tired", "proud", "brave")
_VERBS = (
    "carried", "painted", "found", "mended", "hid", "sold", "lost", "wanted", "borrowed",
    "cleaned", "watched", "returned",
)  # fmt: skip
_QUALITIES = ("small", "heavy", "golden", "broken", "wooden", "strange", "green", "silver")
_THINGS = (
    "lantern", "basket", "mirror", "violin", "ladder", "letter", "bucket", "hammer", "blanket",
    "compass", "kettle", "ribbon",
)  # fmt: skip
_PLACES = (
    "near the river", "behind the mill", "in the garden", "by the harbour", "under the bridge",
    "at the market", "across the valley", "on the island",
)  # fmt: skip
_TIMES = ("at dawn", "last winter", "before supper", "after the storm", "in the evening", "today")


def _sentence(rng: random.Random) -> str:
    person = f"the {rng.choice(_MOODS)} {rng.choice(_PEOPLE)}"
    thing = f"{rng.choice(_QUALITIES)} {rng.choice(_THINGS)}"
    action = f"{rng.choice(_VERBS)} {rng.choice(('a', 'the'))} {thing}"
    place, time = rng.choice(_PLACES), rng.choice(_TIMES)
    sentence = rng.choice(
        (
            f"{person} {action} {place} {time}",
            f"{time} {person} {action} {place}",
            f"{place} {person} {action} {time}",
        )
    )
    return sentence.capitalize() + ".\n"


def _sample(seed: int, train_chars: int) -> Corpus:
    texts = sample_texts(seed, train_chars)

    def part(name, text):
        return Part(lambda: iter([Piece(text, begins=True)]), ((name, 1.0),))

    return Corpus(tuple(map(part, SPLITS, texts)))


def sample_texts(seed: int, train_chars: int) -> tuple[str, str, str]:
    """Short English sentences from a small grammar, none of them twice in the whole corpus.

    Args:
        seed: of the generator.
        train_chars: least number of characters of the training text.

    Returns:
        Texts for training, validation and test; the last two have a tenth of that each.
    """
    rng = random.Random(seed)
    seen: set[str] = set()

    def document(least: int) -> str:
        sentences, length = [], 0
        while length < least:
            sentence = _sentence(rng)
            if sentence not in seen:
                seen.add(sentence)
                sentences.append(sentence)
                length += len(sentence)
        return "".join(sentences)

    tenth = -(-train_chars // 10)
    return document(train_chars), document(tenth), document(tenth)
