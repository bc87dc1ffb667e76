"""Training batches from several corpora, each of which has a share of the windows.

The stretches of all lanes are numbered in the order in which training reads them. A low-discrepancy
sequence assigns these numbers, the slots, to the corpora: of the first n slots, the first corpus
has floor(n w + phase), where w is its weight; those left are divided among the others in the same
way. So the k-th stretch that is read of a corpus is a function of the slot, and nothing has to be
stored to resume. The phases depend on the seed.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from mmrec_jax.data.dataset import Split
from mmrec_jax.data.windows import Batch, shuffled, windows
from mmrec_jax.errors import UserError

_ONE = 2**32  # weights are integer multiples of 1 / _ONE, so that the arithmetic is exact


class Shares:
    """The slots of each corpus."""

    def __init__(self, weights: Sequence[float], seed: int):
        """`weights`: positive; only their ratios count."""
        left = np.cumsum(weights[::-1])[::-1]  # the weight of each corpus and those after it
        self._shares = [
            round(weight / rest * _ONE) for weight, rest in zip(weights, left, strict=True)
        ]
        self._phases = np.random.SeedSequence(seed).generate_state(len(weights)).tolist()

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """The corpus that a slot belongs to, and how many earlier slots do."""
        for corpus, (share, phase) in enumerate(zip(self._shares, self._phases, strict=True)):
            before, until = ((n * share + phase) // _ONE for n in (slot, slot + 1))
            if until > before:
                return corpus, before
            slot -= before  # among those left for the next corpora
        raise AssertionError("the last corpus has all slots that are left")


class MixtureWindows:
    """Training batches whose stretches of consecutive windows come from several corpora.

    Each corpus is read in epochs of its own: all its stretches once, in a new random order. As many
    steps as all corpora together have windows count as an epoch of the mixture.
    """

    def __init__(
        self,
        split: Split,
        weights: Sequence[float],
        batch_size: int,
        seq_len: int,
        seed: int,
        stretch: int = 1,
        groups: int = 1,
        rows: Sequence[int] | None = None,
    ):
        """`split`: the corpora in order; `weights`: their shares; `stretch`: windows in a row.

        `groups` of lanes take turns: a batch has the lanes of one. `rows`: those of each batch that
        this process reads; None: all.

        Raises:
            UserError: a corpus has less than one stretch.
        """
        self._split, self._batch_size, self._seq_len, self._seed = split, batch_size, seq_len, seed
        self._stretch, self._groups = stretch, groups
        self._rows = range(batch_size) if rows is None else rows
        self._lanes = batch_size * groups
        tokens = split.part_tokens[: len(weights)]
        self._first = [0, *itertools.accumulate(tokens)]  # token of each corpus
        self._stretches = [max(count - 1, 0) // seq_len // stretch for count in tokens]
        self._shares = Shares(weights, seed)
        for number, (count, stretches) in enumerate(zip(tokens, self._stretches, strict=True), 1):
            if not stretches:
                raise UserError(
                    f"corpus {number} of data.mixture has {count:,} training tokens, but "
                    f"{stretch} x {seq_len} + 1 are read in a row; add text, or lower "
                    "train.seq_len or train.carry_windows"
                )
        self.steps_per_epoch = max(sum(self._stretches) // batch_size, 1) * stretch

    def __getitem__(self, step: int) -> Batch:
        """This process's rows of the batch of a step; steps are counted from 0 across epochs."""
        own_turn, group = divmod(step, self._groups)
        starts, fresh = [], []
        for row in self._rows:
            lane = group * self._batch_size + row
            ahead = lane % self._stretch  # lanes begin their stretches at different steps
            turn, window = divmod(own_turn + ahead, self._stretch)
            corpus, count = self._shares[turn * self._lanes + lane]
            epoch, index = divmod(count, self._stretches[corpus])
            order = shuffled(self._stretches[corpus], self._seed, epoch, corpus)
            number = order[index] * self._stretch + window
            starts.append(self._first[corpus] + number * self._seq_len)
            fresh.append(window == 0 or own_turn == 0)
        return windows(self._split, starts, self._seq_len, fresh)
