"""The data of a run: a tokenized corpus in three splits."""

import hashlib
from typing import NamedTuple

import numpy as np

from mmrec_jax.config import Config, DataConfig
from mmrec_jax.data.corpus import HELD_OUT
from mmrec_jax.data.prepare import prepare
from mmrec_jax.data.sources import recall
from mmrec_jax.data.token_cache import Prepared
from mmrec_jax.data.token_files import TokenReader
from mmrec_jax.data.tokenizers import Tokenizer
from mmrec_jax.errors import UserError


class ArrayTokens(NamedTuple):
    """Tokens in memory, read like those of a `TokenReader`."""

    tokens: np.ndarray  # int32 [tokens]
    documents: np.ndarray  # int32 [tokens]

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens[start:stop], self.documents[start:stop]


class Split(NamedTuple):
    """The tokens of a split, in corpus order."""

    tokens: ArrayTokens | TokenReader
    num_tokens: int
    num_bytes: int  # UTF-8 bytes of the text to predict
    padding: int = 0  # id of the padding token
    answers: np.ndarray | None = None  # bool [tokens]: which tokens to predict; None: all
    num_words: int = 0  # of the text to predict; 0: unknown
    part_tokens: tuple[int, ...] = ()  # tokens of each part of the corpus, in order


class Dataset(NamedTuple):
    """The tokenizer and the splits of a run."""

    tokenizer: Tokenizer
    train: Split  # empty if training texts are generated on the fly
    validation: Split
    test: Split
    fingerprint: str  # changes with any token, document or split
    prepared: Prepared | None  # the splits on disk; None: they are not on disk


def load_dataset(config: Config) -> Dataset:
    """The tokenized corpus of a config, read from the cache if it is there.

    Raises:
        UserError: there is no text, or too little for one training batch or to predict one token
            of a held-out split.
    """
    if config.data.source == "recall":
        return _recall_dataset(config)
    prepared = prepare(config)
    splits = {name: open_split(prepared, name, config.data) for name in prepared.splits}
    digests = " ".join(split.digest for split in prepared.splits.values())
    batch_size, seq_len = config.train.batch_size, config.train.seq_len
    if splits["train"].num_tokens <= batch_size * seq_len:
        raise UserError(
            f"the training split has {splits['train'].num_tokens:,} tokens, but one batch of "
            f"{batch_size} x {seq_len} needs {batch_size * seq_len + 1:,}; add text, or lower "
            "train.batch_size or train.seq_len"
        )
    for name in HELD_OUT:
        wanted = name == "validation" or config.data.test_fraction or config.data.test_path
        if wanted and not splits[name].num_bytes:
            raise UserError(
                f"the {name} split has no tokens to predict; add text, or raise "
                f"data.{name}_fraction"
            )
    fingerprint = hashlib.sha256(digests.encode()).hexdigest()
    return Dataset(prepared.tokenizer, **splits, fingerprint=fingerprint, prepared=prepared)


def open_split(prepared: Prepared, name: str, data: DataConfig) -> Split:
    """A split stored in token files."""
    tokens, counts, _, part_tokens = prepared.splits[name]
    return Split(
        tokens=tokens,
        num_tokens=counts.tokens,
        num_bytes=counts.num_bytes,
        padding=prepared.tokenizer.padding,
        num_words=counts.num_words + (counts.num_lines if data.count_line_ends else 0),
        part_tokens=part_tokens,
    )


def _recall_dataset(config: Config) -> Dataset:
    pairs, seq_len = config.data.recall_pairs, config.train.seq_len
    recall.check_lengths(pairs, seq_len)
    recall.suite_lengths(pairs, seq_len, config.model.chunk_len)  # or no evaluation could follow
    if config.model.vocab_size < recall.TOKENIZER.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size}; the recall tasks need "
            f"{recall.TOKENIZER.vocab_size}"
        )
    empty = np.zeros(0, np.int32)
    held_out = [
        recall_texts(config, np.random.default_rng((config.data.sample_seed, split)), count=256)
        for split in (1, 2)
    ]
    digest = hashlib.sha256()
    for split in held_out:
        digest.update(np.stack(split.tokens.read(0, split.num_tokens)).tobytes())
    train = Split(ArrayTokens(empty, empty), 0, 0)
    return Dataset(recall.TOKENIZER, train, *held_out, digest.hexdigest(), prepared=None)


def recall_texts(config: Config, rng: np.random.Generator, count: int) -> Split:
    """Recall texts of the training length, each its own document."""
    seq_len, data = config.train.seq_len, config.data
    tokens, answers = recall.make_training_texts(
        rng, data.recall_pairs, count, seq_len, data.recall_fewest or data.recall_pairs
    )
    documents = np.repeat(np.arange(count, dtype=np.int32), seq_len)
    return Split(
        tokens=ArrayTokens(tokens.ravel(), documents),
        num_tokens=tokens.size,
        num_bytes=len(recall.TOKENIZER.decode(tokens[answers])),
        answers=answers.ravel(),
    )
