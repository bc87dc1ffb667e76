"""Tokenizers: text to token ids and back.

char    one token per character; characters outside the vocabulary are unknown
byte    one token per UTF-8 byte
bpe     byte-level byte pair encoding, trained on the training split
*.json  a tokenizer.json of the `tokenizers` library
word    one token per word of a closed vocabulary (data/sources/recall.py)

Ids 0 and 1 are padding and the start of a document; no text encodes to them. A tokenizer.json gets
them as its last two ids unless it has `<pad>` and `<doc>`. "word" has neither.
"""

import codecs
import collections
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, SupportsInt, runtime_checkable

import numpy as np
import tokenizers as hf

from mmrec_jax.errors import UserError

PADDING, DOCUMENT = 0, 1
SPECIAL = ("<pad>", "<doc>")
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@runtime_checkable
class Decoder(Protocol):
    """Turns a stream of tokens into text, one complete character after another."""

    def feed(self, token: int) -> str:
        """The text that this token completes."""

    def rest(self) -> str:
        """The text that remains after the last token; part of a character is U+FFFD."""


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of all tokenizers."""

    padding: int  # id of the padding token
    document: int | None  # id of the token that starts a document; None: there is none
    unknown: int | None  # id of anything outside the vocabulary; None: it has everything

    @property
    def vocab_size(self) -> int:
        """Number of ids; all ids are below it."""

    @property
    def text_ids(self) -> range:
        """Ids that stand for text, the only ones that may be generated."""

    @property
    def tokens(self) -> list[str]:
        """The name of each id."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [tokens]."""

    def decode(self, tokens: Iterable[SupportsInt] | np.ndarray) -> str:
        """The text of token ids; ids that stand for no text are skipped."""

    def decoder(self) -> Decoder:
        """A decoder for one stream of tokens."""

    def to_json(self) -> str:
        """The tokenizer as JSON, for `tokenizer_from_json`."""


class CharTokenizer:
    """One token per character. Id 2 is any unknown character."""

    padding, document, unknown = PADDING, DOCUMENT, 2
    first = 3

    def __init__(self, characters: Sequence[str]):
        """`characters`: the vocabulary in code point order, without the unknown character."""
        self.characters = tuple(characters)
        self._codes = np.array([ord(character) for character in characters], np.uint32)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "CharTokenizer":
        """The most frequent characters of the texts; `vocab_size` includes the three first ids."""
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(text)
        counts.pop(UNKNOWN_CHARACTER, None)
        # Ties are broken by code point, so that the vocabulary depends on the text alone.
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        return cls(sorted(ranked[: max(vocab_size - cls.first, 0)]))

    @property
    def vocab_size(self) -> int:
        return self.first + len(self.characters)

    @property
    def text_ids(self) -> range:
        return range(self.first, self.vocab_size)

    @property
    def tokens(self) -> list[str]:
        return [*SPECIAL, UNKNOWN_CHARACTER, *self.characters]

    def encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        if not len(self._codes):
            return np.full(len(codes), self.unknown, np.int32)
        index = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        known = self._codes[index] == codes
        return np.where(known, index + self.first, self.unknown).astype(np.int32)

    def decode(self, tokens: Iterable[SupportsInt] | np.ndarray) -> str:
        return "".join(map(self._character, map(int, tokens)))

    def _character(self, token: int) -> str:
        if self.first <= token < self.vocab_size:
            return self.characters[token - self.first]
        return UNKNOWN_CHARACTER if token == self.unknown else ""

    def decoder(self) -> Decoder:
        return _WholeTokens(self._character)

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "characters": "".join(self.characters)}) + "\n"


class ByteTokenizer:
    """One token per byte of UTF-8; byte b has id 2 + b."""

    padding, document, unknown = PADDING, DOCUMENT, None
    first = 2
    vocab_size = 258
    text_ids = range(2, 258)

    @property
    def tokens(self) -> list[str]:
        return [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]

    def encode(self, text: str) -> np.ndarray:
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        return data.astype(np.int32) + self.first

    def decode(self, tokens: Iterable[SupportsInt] | np.ndarray) -> str:
        decoder = self.decoder()
        return "".join(map(decoder.feed, map(int, tokens))) + decoder.rest()

    def decoder(self) -> Decoder:
        return _Bytes(lambda token: bytes([token - self.first]) if token in self.text_ids else b"")

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"}) + "\n"


class SubwordTokenizer:
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

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def text_ids(self) -> range:
        if self.padding == PADDING:
            return range(len(SPECIAL), self.vocab_size)
        return range(min(self.padding, self.document))

    @functools.cached_property
    def tokens(self) -> list[str]:
        return [self._tokenizer.id_to_token(index) for index in range(self.vocab_size)]

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

    def decode(self, tokens: Iterable[SupportsInt] | np.ndarray) -> str:
        known = [token for token in map(int, tokens) if token < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=True)

    def decoder(self) -> Decoder:
        return _Subwords(self._tokenizer)

    def to_json(self) -> str:
        return json.dumps({"kind": "subword", "tokenizer": json.loads(self._tokenizer.to_str())})


class WordTokenizer:
    """One token per word of a closed vocabulary, split at white space. Id 0 is any unknown word."""

    padding, document, unknown = 0, None, 0

    def __init__(self, words: Sequence[str]):
        """`words`: the vocabulary, without the unknown word."""
        self.words = tuple(words)
        self._ids = {word: index for index, word in enumerate(self.words, start=1)}

    @property
    def vocab_size(self) -> int:
        return 1 + len(self.words)

    @property
    def text_ids(self) -> range:
        return range(self.vocab_size)

    @property
    def tokens(self) -> list[str]:
        return [UNKNOWN_CHARACTER, *self.words]

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(word, self.unknown) for word in text.split()], np.int32)

    def decode(self, tokens: Iterable[SupportsInt] | np.ndarray) -> str:
        return "".join(map(self._word, map(int, tokens)))

    def _word(self, token: int) -> str:
        return (self.words[token - 1] if 0 < token < self.vocab_size else UNKNOWN_CHARACTER) + " "

    def decoder(self) -> Decoder:
        return _WholeTokens(self._word)

    def to_json(self) -> str:
        return json.dumps({"kind": "word", "words": self.words}) + "\n"


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json of the `tokenizers` library, or of a workdir.

    Raises:
        UserError: the file is missing or not a tokenizer.
    """
    try:
        text = path.read_text()
        if "kind" in json.loads(text):
            return tokenizer_from_json(text)
        return SubwordTokenizer(hf.Tokenizer.from_str(text))
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} is not a tokenizer.json: {error}") from error


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` turned into this text."""
    values = json.loads(text)
    match values["kind"]:
        case "char":
            return CharTokenizer(values["characters"])
        case "byte":
            return ByteTokenizer()
        case "word":
            return WordTokenizer(values["words"])
    return SubwordTokenizer(hf.Tokenizer.from_str(json.dumps(values["tokenizer"])))


def document_tokens(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Tokens of a text that begins a document, int32 [tokens]."""
    start = [] if tokenizer.document is None else [tokenizer.document]
    return np.concatenate([np.array(start, np.int32), tokenizer.encode(text)])


# --- decoders ---


class _WholeTokens:
    """Each token is complete text by itself."""

    def __init__(self, text_of):
        self.feed = text_of

    def rest(self) -> str:
        return ""


class _Bytes:
    """Each token is one byte of UTF-8, or no text."""

    def __init__(self, bytes_of):
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._bytes_of(token))

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Subwords:
    """The library's own decoding stream, and the tokens that it holds back."""

    def __init__(self, tokenizer: hf.Tokenizer):
        self._tokenizer, self._held = tokenizer, []
        self._stream = hf.decoders.DecodeStream(skip_special_tokens=True)

    def feed(self, token: int) -> str:
        self._held.append(token)
        text = self._stream.step(self._tokenizer, token)
        if text is None:
            return ""
        self._held.clear()
        return text

    def rest(self) -> str:
        return self._tokenizer.decode(self._held, skip_special_tokens=True)
