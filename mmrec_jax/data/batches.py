"""Batches of tokens. A batch is a function of the step number, which is all that resuming needs."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

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

    def rows(self, batch_size: int) -> range:
        """The rows of a batch that this host reads.

        Raises:
            UserError: the batch cannot be divided evenly among the hosts.
        """
        if batch_size % self.count:
            raise UserError(
                f"train.batch_size {batch_size} is not divisible by the {self.count} hosts"
            )
        share = batch_size // self.count
        return range(self.index * share, (self.index + 1) * share)


ALONE = Host()


# --- training ---


class TrainingWindows:
    """Training batches that read each window of a split once per epoch, except a few left out.

    Consecutive windows form stretches, in a new random order each epoch, and each row of a batch,
    a lane, reads one stretch after another. All lanes begin a stretch at the same step, so windows
    that do not fill a stretch for every lane are left out.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seq_len: int,
        seed: int,
        stretch: int | None = None,
        host: Host = ALONE,
    ):
        """`stretch`: windows that a lane reads in order, with carried memory.

        0: as many as there are, in the order of the corpus. None: memory is not carried.
        """
        self._split, self._batch_size, self._seq_len, self._seed = split, batch_size, seq_len, seed
        self._rows = host.rows(batch_size)
        windows = max(split.num_tokens - 1, 0) // seq_len
        longest = windows // batch_size
        self._stretch = 1 if stretch is None else min(stretch or longest, longest)
        self._num_stretches = windows // self._stretch
        self.steps_per_epoch = self._num_stretches // batch_size * self._stretch
        # Memory that is carried through the whole epoch reads the corpus in its order.
        self._shuffled = stretch is None or self.steps_per_epoch > self._stretch

    def __getitem__(self, step: int) -> Batch:
        """This host's rows of the batch of a step; steps are counted from 0 across epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        turn, window = divmod(index, self._stretch)
        order = grain.MapDataset.range(self._num_stretches)
        if self._shuffled:  # without an array of the order, so that there may be any number
            (seed,) = np.random.SeedSequence((self._seed, epoch)).generate_state(1)
            order = order.shuffle(seed=int(seed))
        chosen = [
            order[turn * self._batch_size + row] * self._stretch + window for row in self._rows
        ]
        return _windows(self._split, chosen, self._seq_len, fresh=window == 0)


class RecallTexts:
    """Training batches of recall texts, newly generated in every step."""

    def __init__(self, config: Config, host: Host = ALONE):
        self._config = config
        self._rows = host.rows(config.train.batch_size)
        self.steps_per_epoch = config.data.recall_steps

    def __getitem__(self, step: int) -> Batch:
        """This host's rows of the batch of a step."""
        train = self._config.train
        rng = np.random.default_rng((self._config.data.sample_seed, 0, train.seed, step))
        split = recall_texts(self._config, rng, train.batch_size)
        return _windows(split, self._rows, train.seq_len, fresh=True)


Batches = TrainingWindows | RecallTexts


def training_batches(split: Split, config: Config, host: Host = ALONE) -> Batches:
    """Recall texts, stretches of windows if memory is carried, or else shuffled windows."""
    train = config.train
    if config.data.source == "recall":
        return RecallTexts(config, host)
    stretch = train.carry_windows if train.carry_memory else None
    return TrainingWindows(split, train.batch_size, train.seq_len, train.seed, stretch, host)


def prefetched(batches: Batches, first: int, last: int) -> Iterator[Batch]:
    """The batches of steps `first` to `last` - 1, put on the device ahead of time."""
    dataset = grain.MapDataset.range(first, last).map(batches.__getitem__).map(jax.device_put)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
    return iter(dataset.to_iter_dataset(options))


# --- evaluation ---


def every_window(split: Split, batch_size: int, seq_len: int, unit: int = 1) -> Iterator[Batch]:
    """Evaluation batches of one shape that together predict every token of a split exactly once.

    Each lane reads its own stretch in order. Its number of windows is a multiple of `unit`.
    """
    steps = -(-(split.num_tokens - 1) // (seq_len * batch_size * unit)) * unit
    for index in range(steps):
        chosen = [lane * steps + index for lane in range(batch_size)]
        yield _windows(split, chosen, seq_len, fresh=index == 0)


@dataclasses.dataclass(frozen=True)
class SplitWindows:
    """A split as evaluation batches (`every_window`)."""

    split: Split
    batch_size: int  # lanes
    seq_len: int
    unit: int = 1  # lanes begin and end at multiples of `unit` windows

    def __iter__(self) -> Iterator[Batch]:
        return every_window(self.split, self.batch_size, self.seq_len, self.unit)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text to predict."""
        return self.split.num_bytes


class TextWindows:
    """A text of any length as evaluation batches of one sequence each, in constant memory.

    After the last batch, `num_bytes` is the number of UTF-8 bytes that were predicted.
    """

    batch_size = 1

    def __init__(self, pieces: Iterable[str], tokenizer: Tokenizer, seq_len: int, name: str):
        """`pieces`: the text; `name`: its name in error messages."""
        self._pieces, self._tokenizer = pieces, tokenizer
        self._seq_len, self._name, self.num_bytes = seq_len, name, 0

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
        text = ArrayTokens(tokens, np.zeros_like(tokens))
        split = Split(text, len(tokens), 0, self._tokenizer.padding)
        return _windows(split, [0], self._seq_len, fresh)


def _windows(split: Split, chosen: Sequence[int], seq_len: int, fresh: bool) -> Batch:
    """The windows with the given numbers; positions past the end of the split are padding."""
    shape = len(chosen), seq_len + 1
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
