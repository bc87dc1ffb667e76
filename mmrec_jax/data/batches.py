"""Batches of tokens. A batch is a function of the step number, which is all that resuming needs."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import grain
import jax
import numpy as np

from mmrec_jax.config import Config
from mmrec_jax.data.corpus import Piece
from mmrec_jax.data.dataset import ArrayTokens, Split, recall_texts
from mmrec_jax.data.encoding import blocks
from mmrec_jax.data.tokenizers import Tokenizer, document_tokens
from mmrec_jax.errors import UserError

PREFETCH = 8  # batches prepared ahead of time


class Batch(NamedTuple):
    """Sequences to read, and the token that follows each of their tokens.

    All arrays are [batch, time], except `fresh`, which is [batch].
    """

    tokens: np.ndarray  # int32
    documents: np.ndarray  # int32, the document number of each token
    targets: np.ndarray  # int32, the next tokens
    weights: np.ndarray  # float32: 1 where the target is to be predicted, else 0
    fresh: np.ndarray  # bool: false where the sequence continues that of the previous batch


class Host(NamedTuple):
    """The share of each batch that this process reads."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this host reads.

        Raises:
            UserError: the batch cannot be divided evenly among the hosts.
        """
        if batch_size % self.count:
            raise UserError(
                f"train.batch_size {batch_size} is not divisible by the {self.count} hosts"
            )
        share = batch_size // self.count
        return slice(self.index * share, (self.index + 1) * share)


ALONE = Host()


def num_windows(split: Split, seq_len: int) -> int:
    """Number of complete windows of `seq_len` predictions in a split."""
    return max(split.num_tokens - 1, 0) // seq_len


def _shuffled(count: int, seed: int, epoch: int) -> grain.MapDataset:
    """A permutation of range(count), not stored as an array, so that `count` may be any size."""
    (number,) = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return grain.MapDataset.range(count).shuffle(seed=int(number))


# --- training ---


@runtime_checkable
class Batches(Protocol):
    """Training batches, indexed by step."""

    steps_per_epoch: int

    def __getitem__(self, step: int) -> Batch:
        """This host's rows of the batch of a step; steps are counted from 0 across epochs."""


class ShuffledWindows:
    """Training batches with every window once per epoch, in a new random order each time."""

    def __init__(self, split: Split, batch_size: int, seq_len: int, seed: int, host: Host = ALONE):
        self._split, self._batch_size, self._seq_len, self._seed = split, batch_size, seq_len, seed
        self._rows = host.rows(batch_size)
        self._num_windows = num_windows(split, seq_len)
        self.steps_per_epoch = self._num_windows // batch_size

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _shuffled(self._num_windows, self._seed, epoch)
        chosen = [order[index * self._batch_size + row] for row in _indices(self._rows)]
        return _windows(self._split, chosen, self._seq_len, fresh=True)


class ContiguousLanes:
    """Training batches for carried memory: each lane reads a stretch of the corpus in order.

    All lanes begin a stretch at the same step. Windows that do not fill a stretch for every lane
    are left out.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seq_len: int,
        seed: int,
        stretch: int = 0,
        host: Host = ALONE,
    ):
        """`stretch`: windows per stretch, in a new random order each epoch; 0: one per lane."""
        self._split, self._batch_size, self._seq_len, self._seed = split, batch_size, seq_len, seed
        self._rows = host.rows(batch_size)
        windows = num_windows(split, seq_len)
        longest = windows // batch_size
        self._stretch = min(stretch, longest) if stretch else longest
        self._num_stretches = windows // self._stretch
        self.steps_per_epoch = self._num_stretches // batch_size * self._stretch

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        turn, window = divmod(index, self._stretch)
        order = range(self._num_stretches)
        if self.steps_per_epoch > self._stretch:
            order = _shuffled(self._num_stretches, self._seed, epoch)
        chosen = [
            order[turn * self._batch_size + row] * self._stretch + window
            for row in _indices(self._rows)
        ]
        return _windows(self._split, chosen, self._seq_len, fresh=window == 0)


class RecallTexts:
    """Training batches of recall texts, newly generated in every step."""

    def __init__(self, config: Config, host: Host = ALONE):
        self._config = config
        self._rows = host.rows(config.train.batch_size)
        self.steps_per_epoch = config.data.recall_steps

    def __getitem__(self, step: int) -> Batch:
        train = self._config.train
        rng = np.random.default_rng((self._config.data.sample_seed, 0, train.seed, step))
        split = recall_texts(self._config, rng, train.batch_size)
        return _windows(split, _indices(self._rows), train.seq_len, fresh=True)


def _indices(rows: slice) -> range:
    return range(rows.start, rows.stop)


def training_batches(split: Split, config: Config, host: Host = ALONE) -> Batches:
    """Contiguous lanes if memory is carried from step to step, else shuffled windows.

    The recall tasks have batches of their own.
    """
    train = config.train
    if config.data.source == "recall":
        return RecallTexts(config, host)
    if train.carry_memory:
        return ContiguousLanes(
            split, train.batch_size, train.seq_len, train.seed, train.carry_windows, host
        )
    return ShuffledWindows(split, train.batch_size, train.seq_len, train.seed, host)


class _Steps:
    """Batches as a Grain source, which needs a length."""

    def __init__(self, batches: Batches, first: int, last: int):
        self._batches, self._first, self._last = batches, first, last

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: int) -> Batch:
        return self._batches[self._first + index]


def prefetched(batches: Batches, first: int, last: int) -> Iterator[Batch]:
    """The batches of steps `first` to `last` - 1, put on the device ahead of time."""
    dataset = grain.MapDataset.source(_Steps(batches, first, last)).map(jax.device_put)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
    return iter(dataset.to_iter_dataset(options))


# --- evaluation ---


def every_window(split: Split, batch_size: int, seq_len: int) -> Iterator[Batch]:
    """Evaluation batches of one shape that together predict every token of a split exactly once.

    Each lane reads its own stretch in order.
    """
    count = -(-(split.num_tokens - 1) // seq_len)
    steps = -(-count // batch_size)
    for index in range(steps):
        chosen = [lane * steps + index for lane in range(batch_size)]
        yield _windows(split, chosen, seq_len, fresh=index == 0)


class TextWindows:
    """A text of any length as evaluation batches of one sequence each, in constant memory.

    After the last batch, `num_bytes` is the number of UTF-8 bytes that were predicted.
    """

    def __init__(self, pieces: Iterable[str], tokenizer: Tokenizer, seq_len: int, name: str):
        """`pieces`: the text; `name`: its name in error messages."""
        self._pieces, self._tokenizer, self._seq_len = pieces, tokenizer, seq_len
        self._name = name
        self.num_bytes = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Raises:
            UserError: there is nothing to predict.
        """
        tokens, fresh, self.num_bytes = document_tokens(self._tokenizer, ""), True, 0
        for block in blocks(Piece(text, begins=False) for text in self._pieces):
            for text, _ in block:
                self.num_bytes += len(text.encode("utf-8", "surrogatepass"))
                tokens = np.concatenate([tokens, self._tokenizer.encode(text)])
            while len(tokens) > self._seq_len:
                yield self._batch(tokens, fresh)
                tokens, fresh = tokens[self._seq_len :], False
        if len(tokens) > 1:
            yield self._batch(tokens, fresh)
        elif fresh:
            raise UserError(f"{self._name} has nothing to predict; is it empty?")

    def _batch(self, tokens: np.ndarray, fresh: bool) -> Batch:
        split = Split(
            ArrayTokens(tokens, np.zeros_like(tokens)), len(tokens), 0, self._tokenizer.padding
        )
        return _windows(split, [0], self._seq_len, fresh)


def _windows(split: Split, chosen: Iterable[int], seq_len: int, fresh: bool) -> Batch:
    """The windows with the given numbers; positions past the end of the split are padding."""
    shape = len(list(chosen)), seq_len + 1
    tokens, documents = np.full(shape, split.padding, np.int32), np.zeros(shape, np.int32)
    known = np.zeros(shape, bool)
    for row, window in enumerate(chosen):
        start = window * seq_len
        stop = min(start + seq_len + 1, split.num_tokens)
        if start >= stop:
            continue
        here = slice(stop - start)
        tokens[row, here], documents[row, here] = split.tokens.read(start, stop)
        documents[row, stop - start :] = documents[row, stop - start - 1]
        known[row, here] = True if split.answers is None else split.answers[start:stop]
    known[:, 1:] &= documents[:, 1:] == documents[:, :-1]
    return Batch(
        tokens=tokens[:, :-1],
        documents=documents[:, :-1],
        targets=tokens[:, 1:],
        weights=known[:, 1:].astype(np.float32),
        fresh=np.full(len(tokens), fresh),
    )
