"""Sentences from a small grammar, generated from a seed: a corpus that needs no files."""

import random

from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import SPLITS, Corpus, Part, Piece

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
    orders = (
        f"{person} {action} {place} {time}",
        f"{time} {person} {action} {place}",
        f"{place} {person} {action} {time}",
    )
    return rng.choice(orders).capitalize() + ".\n"


def open_corpus(config: DataConfig) -> Corpus:
    """The generated sentences of a config, one document per split."""
    texts = sample_texts(config.sample_seed, config.sample_chars)

    def part(name, text):
        return Part(lambda: iter([Piece(text, begins=True)]), ((name, 1.0),))

    return Corpus(tuple(map(part, SPLITS, texts)))


def sample_texts(seed: int, train_chars: int) -> tuple[str, str, str]:
    """Short English sentences from a small grammar, without repetitions in the entire corpus.

    Returns:
        Texts for training, with at least `train_chars` characters, and for validation and test,
        with at least a tenth of that each.
    """
    rng = random.Random(seed)
    seen: set[str] = set()

    def document(least: int) -> str:
        text = ""
        while len(text) < least:
            sentence = _sentence(rng)
            if sentence not in seen:
                seen.add(sentence)
                text += sentence
        return text

    tenth = -(-train_chars // 10)
    return document(train_chars), document(tenth), document(tenth)
