"""Where text comes from: documents of a training, a validation and a test split.

The splits are contiguous, in that order: a validation split taken from between training sentences
would flatter the model.
"""

import glob
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmrec_jax.config import DataConfig
from mmrec_jax.errors import UserError


class Splits(NamedTuple):
    """Documents of each split."""

    train: list[str]
    validation: list[str]
    test: list[str]


def load_corpus(config: DataConfig) -> Splits:
    """The documents that a config names.

    Raises:
        UserError: no file, an empty or unreadable file, or text that is not UTF-8.
    """
    if config.source == "sample":
        return sample_corpus(config.sample_seed, config.sample_chars)
    documents = [read_text(path) for path in _matching_files(config.path)]
    return split_documents(documents, config.validation_fraction, config.test_fraction)


# --- text files ---


def _matching_files(pattern: str) -> list[Path]:
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in paths if path.is_file()]
    if not files:
        raise UserError(f"data.path {pattern!r} matches no file (looked from {Path.cwd()})")
    return files


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: the file is missing, unreadable, empty or not UTF-8.
    """
    try:
        data = path.read_bytes()
        text = data.decode().removeprefix("\N{BYTE ORDER MARK}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} (line {line}) is "
            f"0x{data[error.start]:02x}; convert the file to UTF-8"
        ) from error
    if not text:
        raise UserError(f"{path} is empty; leave it out of data.path")
    return text


def stream_text(path: Path, block: int = 2**20) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of at most `block` characters: for texts of any length.

    Raises:
        UserError: the file is missing, unreadable or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            while text := file.read(block):
                yield text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; convert the file to UTF-8") from error


def split_documents(
    documents: list[str], validation_fraction: float, test_fraction: float
) -> Splits:
    """Cuts documents, in their order, into contiguous splits by number of characters."""
    total = sum(map(len, documents))
    test_start = total - round(total * test_fraction)
    validation_start = test_start - round(total * validation_fraction)
    return Splits(
        _between(documents, 0, validation_start),
        _between(documents, validation_start, test_start),
        _between(documents, test_start, total),
    )


def _between(documents: list[str], start: int, end: int) -> list[str]:
    parts, position = [], 0
    for document in documents:
        part = document[max(start - position, 0) : max(end - position, 0)]
        if part:
            parts.append(part)
        position += len(document)
    return parts


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


def sample_corpus(seed: int, train_chars: int) -> Splits:
    """Short English sentences from a small grammar, none of them twice in the whole corpus.

    Args:
        seed: of the generator.
        train_chars: least number of characters of the training split; validation and test get a
            tenth of that each.
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
    return Splits([document(train_chars)], [document(tenth)], [document(tenth)])
