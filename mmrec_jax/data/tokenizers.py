"""Tokenizers: text to token ids and back."""

import collections
import json
from collections.abc import Iterable, Sequence

import numpy as np

UNKNOWN = 0  # token id of any character outside the vocabulary
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class CharTokenizer:
    """One token a character. Id 0 is the unknown character."""

    def __init__(self, characters: Sequence[str]):
        """`characters`: the vocabulary in code point order, without the unknown character."""
        self.characters = tuple(characters)
        self._codes = np.array([ord(character) for character in characters], np.uint32)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "CharTokenizer":
        """The most frequent characters of the texts, `vocab_size` with the unknown one at most."""
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(text)
        counts.pop(UNKNOWN_CHARACTER, None)
        # Ties by code point, so that the vocabulary depends on the text alone.
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        return cls(sorted(ranked[: vocab_size - 1]))

    @property
    def vocab_size(self) -> int:
        return 1 + len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [characters]."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        if not len(self._codes):
            return np.full(len(codes), UNKNOWN, np.int32)
        index = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[index] == codes, index + 1, UNKNOWN).astype(np.int32)

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """The text of token ids; unknown ones become U+FFFD."""
        return "".join(
            self.characters[token - 1] if 0 < token < self.vocab_size else UNKNOWN_CHARACTER
            for token in map(int, tokens)
        )

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "characters": "".join(self.characters)}) + "\n"


class WordTokenizer:
    """One token a word of a closed vocabulary; words are parted by white space. Id 0 is unknown."""

    def __init__(self, words: Sequence[str]):
        """`words`: the vocabulary, without the unknown word."""
        self.words = tuple(words)
        self._ids = {word: index for index, word in enumerate(self.words, start=1)}

    @property
    def vocab_size(self) -> int:
        return 1 + len(self.words)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [words]."""
        return np.array([self._ids.get(word, UNKNOWN) for word in text.split()], np.int32)

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """The words of token ids, each with a space after it; unknown ones become U+FFFD."""
        return "".join(
            f"{self.words[token - 1] if 0 < token < self.vocab_size else UNKNOWN_CHARACTER} "
            for token in map(int, tokens)
        )

    def to_json(self) -> str:
        return json.dumps({"kind": "word", "words": self.words}) + "\n"


Tokenizer = CharTokenizer | WordTokenizer


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer of which `to_json` gave this."""
    values = json.loads(text)
    if values["kind"] == "word":
        return WordTokenizer(values["words"])
    return CharTokenizer(values["characters"])
