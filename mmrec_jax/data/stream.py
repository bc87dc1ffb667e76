"""Batches of tokens. A batch is a function of the step number, so resuming needs nothing else."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mmrec_jax.config import Config
from mmrec_jax.data import recall
from mmrec_jax.data.corpora import load_corpus
from mmrec_jax.data.tokenizers import CharTokenizer, Tokenizer
from mmrec_jax.errors import UserError


class Batch(NamedTuple):
    """Sequences to read and what follows each of their tokens.

    Every array is [batch, time] but `fresh`, [batch].
    """

    tokens: np.ndarray  # int32
    documents: np.ndarray  # int32, the id of each token's document
    targets: np.ndarray  # int32, the next tokens
    weights: np.ndarray  # float32: 1 where the next token is to be predicted, else 0
    fresh: np.ndarray  # bool: false where the sequence goes on from that of the batch before


class Split(NamedTuple):
    """The tokens of a split, in the order of the corpus."""

    tokens: np.ndarray  # int32 [tokens]
    documents: np.ndarray  # int32 [tokens]
    num_bytes: int  # UTF-8 bytes of the text that is predicted: all but each document's first token
    answers: np.ndarray | None = None  # bool [tokens]: the only ones to predict; None: all


class Dataset(NamedTuple):
    tokenizer: Tokenizer
    train: Split  # empty where training texts are made on the fly
    validation: Split
    test: Split

    def fingerprint(self) -> str:
        """Changes with any token, document boundary or split."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for array in (split.tokens, split.documents):
                digest.update(len(array).to_bytes(8, "little") + array.tobytes())
        return digest.hexdigest()  # answers follow from the tokens


def load_dataset(config: Config) -> Dataset:
    """Reads, splits and tokenizes the corpus.

    Raises:
        UserError: no text, or less than one training batch or one prediction of it.
    """
    if config.data.source == "recall":
        return _recall_dataset(config)
    corpus = load_corpus(config.data)
    tokenizer = CharTokenizer.train(corpus.train, config.model.vocab_size)
    splits = [encode_documents(documents, tokenizer) for documents in corpus]
    dataset = Dataset(tokenizer, *splits)
    batch_size, seq_len = config.train.batch_size, config.train.seq_len
    if num_windows(dataset.train, seq_len) < batch_size:
        raise UserError(
            f"the training split has {len(dataset.train.tokens):,} tokens, but one batch of "
            f"{batch_size} x {seq_len} needs {batch_size * seq_len + 1:,}; add text, or lower "
            "train.batch_size or train.seq_len"
        )
    for name in ("validation", "test"):
        if not getattr(dataset, name).num_bytes:
            raise UserError(
                f"the {name} split has no token to predict; add text, or raise data.{name}_fraction"
            )
    return dataset


def _recall_dataset(config: Config) -> Dataset:
    recall.check_lengths(config.data.recall_pairs, config.train.seq_len)
    if config.model.vocab_size < recall.TOKENIZER.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size}; recall's texts need "
            f"{recall.TOKENIZER.vocab_size}"
        )
    train = encode_documents([], recall.TOKENIZER)
    held_out = [
        _recall_texts(config, np.random.default_rng((config.data.sample_seed, split)), count=256)
        for split in (1, 2)
    ]
    return Dataset(recall.TOKENIZER, train, *held_out)


def _recall_texts(config: Config, rng: np.random.Generator, count: int) -> Split:
    """Texts of the training length, each a document of its own."""
    seq_len, data = config.train.seq_len, config.data
    tokens, answers = recall.make_training_texts(
        rng, data.recall_pairs, count, seq_len, data.recall_fewest or data.recall_pairs
    )
    return Split(
        tokens=tokens.ravel(),
        documents=np.repeat(np.arange(count, dtype=np.int32), seq_len),
        num_bytes=len(recall.TOKENIZER.decode(tokens[answers])),
        answers=answers.ravel(),
    )


def encode_documents(documents: list[str], tokenizer: Tokenizer) -> Split:
    """One split of some documents."""
    encoded = [tokenizer.encode(document) for document in documents]
    lengths = [len(tokens) for tokens in encoded]
    return Split(
        tokens=np.concatenate([np.zeros(0, np.int32), *encoded]),
        documents=np.repeat(np.arange(len(documents), dtype=np.int32), lengths),
        num_bytes=sum(len(document[1:].encode()) for document in documents),
    )


def num_windows(split: Split, seq_len: int) -> int:
    """Whole windows of `seq_len` predictions."""
    return max(len(split.tokens) - 1, 0) // seq_len


class ShuffledWindows:
    """Training batches: every window once an epoch, in an order drawn anew for each."""

    def __init__(self, split: Split, batch_size: int, seq_len: int, seed: int):
        self._split, self._batch_size, self._seq_len, self._seed = split, batch_size, seq_len, seed
        self._num_windows = num_windows(split, seq_len)
        self.steps_per_epoch = self._num_windows // batch_size

    def __getitem__(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(self._num_windows)
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        return _windows(self._split, chosen, self._seq_len, fresh=True)


class ContiguousLanes:
    """Training batches for carried memory: each lane reads a stretch of the corpus in order.

    All lanes begin a stretch at once. Windows at the end that do not fill a stretch for every lane
    are left out.
    """

    def __init__(self, split: Split, batch_size: int, seq_len: int, seed: int, stretch: int = 0):
        """`stretch`: its length in windows, each epoch in an order drawn anew; 0: one a lane."""
        self._split, self._batch_size, self._seq_len, self._seed = split, batch_size, seq_len, seed
        windows = num_windows(split, seq_len)
        longest = windows // batch_size
        self._stretch = min(stretch, longest) if stretch else longest
        self._num_stretches = windows // self._stretch
        self.steps_per_epoch = self._num_stretches // batch_size * self._stretch

    def __getitem__(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        turn, window = divmod(index, self._stretch)
        order = np.arange(self._num_stretches)
        if self.steps_per_epoch > self._stretch:
            order = np.random.default_rng((self._seed, epoch)).permutation(order)
        chosen = order[turn * self._batch_size : (turn + 1) * self._batch_size]
        first = chosen * self._stretch
        return _windows(self._split, first + window, self._seq_len, fresh=window == 0)


class RecallTexts:
    """Training batches of recall's texts: new ones in every step."""

    def __init__(self, config: Config):
        self._config = config
        self.steps_per_epoch = config.data.recall_steps

    def __getitem__(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0 over all epochs."""
        train = self._config.train
        rng = np.random.default_rng((self._config.data.sample_seed, 0, train.seed, step))
        split = _recall_texts(self._config, rng, train.batch_size)
        return _windows(split, np.arange(train.batch_size), train.seq_len, fresh=True)


def training_batches(
    split: Split, config: Config
) -> ShuffledWindows | ContiguousLanes | RecallTexts:
    """Contiguous lanes where memory is carried from step to step, else shuffled windows."""
    train = config.train
    if config.data.source == "recall":
        return RecallTexts(config)
    if train.carry_memory:
        return ContiguousLanes(
            split, train.batch_size, train.seq_len, train.seed, train.carry_windows
        )
    return ShuffledWindows(split, train.batch_size, train.seq_len, train.seed)


def every_window(split: Split, batch_size: int, seq_len: int) -> Iterator[Batch]:
    """Evaluation batches of one shape that together predict every token of a split exactly once.

    Each lane of the batch reads its own stretch in order.
    """
    count = -(-(len(split.tokens) - 1) // seq_len)
    steps = -(-count // batch_size)
    first = np.arange(batch_size) * steps
    for index in range(steps):
        yield _windows(split, first + index, seq_len, fresh=index == 0)


class TextWindows:
    """A text of any length as evaluation batches of one sequence, in constant memory.

    After the last batch, `num_bytes` are the UTF-8 bytes of all characters but the first.
    """

    def __init__(self, pieces: Iterable[str], tokenizer: Tokenizer, seq_len: int, name: str):
        """`pieces`: the text; `name`: what a message calls it."""
        self._pieces, self._tokenizer, self._seq_len = pieces, tokenizer, seq_len
        self._name = name
        self.num_bytes = 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            UserError: there are less than two characters.
        """
        tokens, fresh, self.num_bytes = np.zeros(0, np.int32), True, 0
        for text in filter(None, self._pieces):
            self.num_bytes += len(text.encode("utf-8", "surrogatepass"))
            if fresh and not len(tokens):
                self.num_bytes -= len(text[0].encode("utf-8", "surrogatepass"))
            tokens = np.concatenate([tokens, self._tokenizer.encode(text)])
            while len(tokens) > self._seq_len:
                yield self._batch(tokens, fresh)
                tokens, fresh = tokens[self._seq_len :], False
        if len(tokens) > 1:
            yield self._batch(tokens, fresh)
        elif fresh:
            raise UserError(f"{self._name} has no character to predict; it needs at least two")

    def _batch(self, tokens: np.ndarray, fresh: bool) -> Batch:
        split = Split(tokens, np.zeros_like(tokens), 0)
        return _windows(split, np.zeros(1, int), self._seq_len, fresh)


def _windows(split: Split, chosen: np.ndarray, seq_len: int, fresh: bool) -> Batch:
    """Windows by number; what lies past the end is padding that repeats the last token."""
    last = len(split.tokens) - 1
    position = chosen[:, None] * seq_len + np.arange(seq_len)
    here, after = np.minimum(position, last), np.minimum(position + 1, last)
    known = (position < last) & (split.documents[here] == split.documents[after])
    if split.answers is not None:
        known &= split.answers[after]
    return Batch(
        tokens=split.tokens[here],
        documents=split.documents[here],
        targets=split.tokens[after],
        weights=known.astype(np.float32),
        fresh=np.full(len(chosen), fresh),
    )
