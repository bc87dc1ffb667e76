"""Batches of tokens. A batch is a function of the step number, which is all that resuming needs."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from mmrec_jax.config import Config
from mmrec_jax.data.corpus import Piece
from mmrec_jax.data.dataset import ArrayTokens, Split, recall_texts
from mmrec_jax.data.encoding import blocks
from mmrec_jax.data.mixture import MixtureWindows
from mmrec_jax.data.tokenizers import Tokenizer, document_tokens
from mmrec_jax.data.windows import Batch, shuffled, windows
from mmrec_jax.errors import UserError

PREFETCH = 8  # batches prepared ahead of time


# --- training ---


class TrainingWindows:
    """Training batches that read each window of a split once per epoch, except a few left out.

    Consecutive windows form stretches, in a new random order each epoch, and each row of a batch,
    a lane, reads one stretch after another. Lanes that read more than one in an epoch begin them at
    different steps, so that each batch has windows with as little and as much memory as any other.
    In an epoch each lane reads as many stretches as any other; those that are left over are left
    out.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seq_len: int,
        seed: int,
        stretch: int | None = None,
        groups: int = 1,
        rows: Sequence[int] | None = None,
    ):
        """`stretch`: windows that a lane reads in order, with carried memory.

        0: one stretch per epoch, as long as possible. None: memory is not carried. `groups` of
        lanes take turns: a batch has the lanes of one. `rows`: those of each batch that this
        process reads; None: all.

        Raises:
            UserError: there are more lanes than windows.
        """
        self._split, self._batch_size, self._seq_len, self._seed = split, batch_size, seq_len, seed
        self._rows, self._groups = range(batch_size) if rows is None else rows, groups
        count = max(split.num_tokens - 1, 0) // seq_len
        self._lanes = batch_size * groups
        longest = count // self._lanes
        if groups > 1 and not longest:
            raise UserError(
                f"train.carry_groups {groups} x train.batch_size {batch_size} rows need as many "
                f"sequences of {seq_len} tokens, but the training text has {count}; lower "
                "train.carry_groups, or add text"
            )
        self._stretch = 1 if stretch is None else min(stretch or longest, longest)
        self._num_stretches = count // self._stretch
        self._turns = self._num_stretches // self._lanes * self._stretch  # of a group
        self.steps_per_epoch = self._turns * groups

    def __getitem__(self, step: int) -> Batch:
        """This process's rows of the batch of a step; steps are counted from 0 across epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        index, group = divmod(index, self._groups)
        order = shuffled(self._num_stretches, self._seed, epoch)
        starts, fresh = [], []
        for row in self._rows:
            lane = group * self._batch_size + row
            # Where a lane is ahead of the first one, it reads the rest of a stretch first of all in
            # the epoch, and its beginning last of all.
            ahead = lane % self._stretch if self._turns > self._stretch else 0
            turn, window = divmod((index + ahead) % self._turns, self._stretch)
            number = order[turn * self._lanes + lane] * self._stretch + window
            starts.append(number * self._seq_len)
            fresh.append(window == 0 or index == 0)
        return windows(self._split, starts, self._seq_len, fresh)


class RecallTexts:
    """Training batches of recall texts, newly generated in every step."""

    def __init__(self, config: Config, rows: Sequence[int] | None = None):
        """`rows`: those of each batch that this process reads; None: all."""
        self._config = config
        self._rows = range(config.train.batch_size) if rows is None else rows
        self.steps_per_epoch = config.data.recall_steps

    def __getitem__(self, step: int) -> Batch:
        """This process's rows of the batch of a step."""
        train = self._config.train
        rng = np.random.default_rng((self._config.data.sample_seed, 0, train.seed, step))
        split = recall_texts(self._config, rng, train.batch_size)
        starts = [row * train.seq_len for row in self._rows]
        return windows(split, starts, train.seq_len, fresh=True)


Batches = TrainingWindows | MixtureWindows | RecallTexts


def training_batches(split: Split, config: Config, rows: Sequence[int] | None = None) -> Batches:
    """Recall texts, stretches of windows if memory is carried, or else shuffled windows.

    `rows`: those of each batch that this process reads; None: all.

    Raises:
        UserError: a corpus of a mixture is too small.
    """
    train = config.train
    if config.data.source == "recall":
        return RecallTexts(config, rows)
    stretch = train.carry_windows if train.carry_memory else None
    groups = train.carry_groups if train.carry_memory else 1
    shape = train.batch_size, train.seq_len, train.seed
    if config.data.mixture:
        weights = [weight for weight, _ in config.data.components]
        return MixtureWindows(split, weights, *shape, stretch or 1, groups, rows)
    return TrainingWindows(split, *shape, stretch, groups, rows)


def prefetched(
    batches: Batches, first: int, last: int, put: Callable[[Batch], Batch] = jax.device_put
) -> Iterator[Batch]:
    """The batches of steps `first` to `last` - 1, put on the devices ahead of time by `put`."""
    import grain  # takes long, and only training needs it

    dataset = grain.MapDataset.range(first, last).map(batches.__getitem__).map(put)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
    return iter(dataset.to_iter_dataset(options))


# --- evaluation ---


def every_window(split: Split, batch_size: int, seq_len: int, unit: int = 1) -> Iterator[Batch]:
    """Evaluation batches of one shape that together predict every token of a split exactly once.

    Each lane reads its own stretch in order. Its number of windows is a multiple of `unit`.
    """
    steps = -(-(split.num_tokens - 1) // (seq_len * batch_size * unit)) * unit
    for index in range(steps):
        starts = [(lane * steps + index) * seq_len for lane in range(batch_size)]
        yield windows(split, starts, seq_len, fresh=index == 0)


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

    @property
    def num_words(self) -> int:
        """Words of the text to predict."""
        return self.split.num_words


class TextWindows:
    """A text of any length as evaluation batches of one sequence each, in constant memory.

    After the last batch, `num_bytes` and `num_words` are the numbers of UTF-8 bytes and of words
    that were predicted.
    """

    batch_size = 1

    def __init__(
        self,
        pieces: Iterable[str],
        tokenizer: Tokenizer,
        seq_len: int,
        name: str,
        count_line_ends: bool = False,
    ):
        """`pieces`: the text; `name`: its name in error messages."""
        self._pieces, self._tokenizer = pieces, tokenizer
        self._seq_len, self._name, self._count_line_ends = seq_len, name, count_line_ends
        self.num_bytes = self.num_words = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Raises:
            UserError: there is nothing to predict.
        """
        tokens, fresh = document_tokens(self._tokenizer, ""), True
        self.num_bytes = self.num_words = 0
        for block in blocks(Piece(text, begins=False) for text in self._pieces):
            for text, _ in block:
                self.num_bytes += len(text.encode("utf-8", "surrogatepass"))
                self.num_words += len(text.split())
                self.num_words += text.count("\n") if self._count_line_ends else 0
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
        return windows(split, [0], self._seq_len, fresh)
