"""Tokenizers: text to token ids and back.

char    one token per character; characters outside the vocabulary are unknown
byte    one token per UTF-8 byte
bpe     byte-level byte pair encoding, trained on the training split
*.json  a tokenizer.json of the `tokenizers` library
word    one token per word of a closed vocabulary (data/sources/recall.py)

Ids 0 and 1 are padding and the start of a document; no text encodes to them. A tokenizer.json gets
them as its last two ids unless it has `<pad>` and `<doc>`. "word" has neither.
"""

import abc
import codecs
import collections
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import SupportsInt

import numpy as np
import tokenizers as hf

from mmrec_jax.errors import UserError
from mmrec_jax.files import regular

PADDING, DOCUMENT = 0, 1
SPECIAL = ("<pad>", "<doc>")
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(abc.ABC):
    """The interface of all tokenizers."""

    padding: int = PADDING  # id of the padding token
    document: int | None = DOCUMENT  # id of the token that starts a document; None: there is none
    unknown: int | None = None  # id of anything outside the vocabulary; None: it has everything
    tokens: list[str]  # the name of each id
    text_ids: range  # ids that stand for text, the only ones that may be generated

    @property
    def vocab_size(self) -> int:
        """Number of ids; all ids are below it."""
        return len(self.tokens)

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [tokens]."""

    @abc.abstractmethod
    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of a stream of tokens, one complete character after another.

        Part of a character at the end is U+FFFD.
        """

    def decode(self, tokens: Iterable[SupportsInt] | np.ndarray) -> str:
        """The text of token ids; ids that stand for no text are skipped."""
        return "".join(self.pieces(map(int, tokens)))

    @abc.abstractmethod
    def to_json(self) -> str:
        """The tokenizer as JSON, for `tokenizer_from_json`."""


class CharTokenizer(Tokenizer):
    """One token per character. Id 2 is any unknown character."""

    unknown = 2

    def __init__(self, characters: Sequence[str]):
        """`characters`: the vocabulary in code point order, without the unknown character."""
        self.characters = tuple(characters)
        self.tokens = [*SPECIAL, UNKNOWN_CHARACTER, *characters]
        self.text_ids = range(self.unknown + 1, len(self.tokens))
        # The last number is above every code point, so that a search always ends at one of these.
        self._codes = np.array([*map(ord, characters), 2**32 - 1], np.uint32)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "CharTokenizer":
        """The most frequent characters of the texts; `vocab_size` includes the three first ids."""
        counts = collections.Counter(itertools.chain.from_iterable(texts))
        counts.pop(UNKNOWN_CHARACTER, None)
        # Ties are broken by code point, so that the vocabulary depends on the text alone.
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        return cls(sorted(ranked[: max(vocab_size - 3, 0)]))

    def encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        index = np.searchsorted(self._codes, codes)
        known = self._codes[index] == codes
        return np.where(known, index + self.text_ids.start, self.unknown).astype(np.int32)

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        return (self.tokens[i] for i in tokens if i in self.text_ids or i == self.unknown)

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "characters": "".join(self.characters)}) + "\n"


class WordTokenizer(Tokenizer):
    """One token per word of a closed vocabulary, split at white space. Id 0 is any unknown word."""

    padding, document, unknown = 0, None, 0

    def __init__(self, words: Sequence[str]):
        """`words`: the vocabulary, without the unknown word."""
        self.tokens = [UNKNOWN_CHARACTER, *words]
        self.text_ids = range(len(self.tokens))
        self._ids = {word: index for index, word in enumerate(words, start=1)}

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(word, self.unknown) for word in text.split()], np.int32)

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        return (self.tokens[i if i in self.text_ids else self.unknown] + " " for i in tokens)

    def to_json(self) -> str:
        return json.dumps({"kind": "word", "words": self.tokens[1:]}) + "\n"


class ByteTokenizer(Tokenizer):
    """One token per byte of UTF-8; byte b has id 2 + b."""

    def __init__(self):
        self.tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        self.text_ids = range(len(SPECIAL), len(self.tokens))

    def encode(self, text: str) -> np.ndarray:
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        return data.astype(np.int32) + self.text_ids.start

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        data = (bytes([i - self.text_ids.start]) for i in tokens if i in self.text_ids)
        return codecs.iterdecode(data, "utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"}) + "\n"


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, trained here or supplied by the user."""

    def __init__(self, tokenizer: hf.Tokenizer):
        # Without this, "<doc>" in a text would be encoded as the token of that name.
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        missing = [name for name in SPECIAL if tokenizer.token_to_id(name) is None]
        tokenizer.add_special_tokens(missing)
        self._tokenizer = tokenizer
        self.padding, self.document = map(tokenizer.token_to_id, SPECIAL)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unknown = tokenizer.token_to_id(unknown) if unknown else None
        self.tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        if self.padding == PADDING:
            self.text_ids = range(len(SPECIAL), self.vocab_size)
        else:
            self.text_ids = range(min(self.padding, self.document))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "SubwordTokenizer":
        """Byte-level BPE with at most `vocab_size` ids: `<pad>`, `<doc>`, 256 bytes, merges.

        Merges are found one after another, so a smaller vocabulary trained on the same texts is the
        beginning of a larger one.

        Raises:
            UserError: the vocabulary has no room for the bytes.
        """
        alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
        if vocab_size < len(SPECIAL) + len(alphabet):
            raise UserError(
                f"model.vocab_size is {vocab_size}; data.tokenizer 'bpe' needs at least "
                f"{len(SPECIAL) + len(alphabet)}"
            )
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = hf.decoders.ByteLevel()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            min_frequency=2,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def merges(self) -> dict[int, tuple[int, int]]:
        """The two ids that each merged id consists of; if there are several pairs, the first."""
        ids = {token: index for index, token in enumerate(self.tokens)}
        found: dict[int, tuple[int, int]] = {}
        for left, right in json.loads(self._tokenizer.to_str())["model"].get("merges", []):
            found.setdefault(ids[left + right], (ids[left], ids[right]))
        return found

    def encode(self, text: str) -> np.ndarray:
        # "fast" skips the offsets into the text, which are not needed.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        stream, held = hf.decoders.DecodeStream(skip_special_tokens=True), []
        for token in tokens:
            held.append(token)
            if (text := stream.step(self._tokenizer, token)) is not None:
                held.clear()
                yield text
        yield self._tokenizer.decode(held, skip_special_tokens=True)

    def decode(self, tokens: Iterable[SupportsInt] | np.ndarray) -> str:
        known = [token for token in map(int, tokens) if token < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=True)

    def to_json(self) -> str:
        return json.dumps({"kind": "subword", "tokenizer": json.loads(self._tokenizer.to_str())})


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json of the `tokenizers` library, or of a workdir.

    Raises:
        UserError: the file is missing or not a tokenizer.
    """
    try:
        return tokenizer_from_json(regular(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a tokenizer.json: {error}") from error


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json`, or the `tokenizers` library, turned into this text.

    Raises:
        ValueError: it is not a tokenizer.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    match values:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "word", "words": [*words]} if all(isinstance(word, str) for word in words):
            return WordTokenizer(words)
        case {"kind": "byte"}:
            return ByteTokenizer()
        case {"kind": "subword", "tokenizer": tokenizer}:
            text = json.dumps(tokenizer)
    try:
        tokenizer = SubwordTokenizer(hf.Tokenizer.from_str(text))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(" ".join(str(error).split())) from error
    if None in tokenizer.tokens:
        raise ValueError("its ids are not the numbers from 0 on")
    return tokenizer


def document_tokens(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Tokens of a text that begins a document, int32 [tokens]."""
    start = [] if tokenizer.document is None else [tokenizer.document]
    return np.concatenate([np.array(start, np.int32), tokenizer.encode(text)])
