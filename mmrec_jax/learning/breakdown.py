"""The loss of a text by tokens of context and by distance, with intervals over its documents."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mmrec_jax.data.batches import Batch
from mmrec_jax.learning.distance import Places

KINDS = ("total", "position", "token", "pair")  # in what ways a loss is broken down
FIRST_BUCKET = 256  # tokens of context in the first bucket of the loss by position; the rest double
COLUMNS = 48  # buckets of each kind, most of them empty

GROUPS = 1_000  # documents are resampled in at most this many groups, so that sums stay small
DRAWS = 1_000  # resamplings of an interval
FEWEST = 5  # documents that must have tokens in a bucket for it to have an interval
QUANTILES = (0.025, 0.975)


class Bucket(NamedTuple):
    """Mean loss of the tokens with `first` to `last` tokens of context, or at such a distance.

    Both are None for tokens that have not occurred before, and for the complete text.
    """

    first: int | None
    last: int | None
    tokens: int
    loss: float  # nats per token, or a difference of two losses
    interval: tuple[float, float] | None  # of 95%; None: too few documents have such tokens

    @property
    def name(self) -> str:
        """`first` and `last` in words."""
        if self.first is None:
            return "never before"
        return f"{self.first:,}" + (f" to {self.last:,}" if self.last > self.first else "")


class Breakdown:
    """Sums of the losses of a text, by document and bucket.

    An interval of 95% is found by the bootstrap: documents are drawn with replacement, as many as
    there are, and the mean is computed again, 1,000 times; the interval lies between the 2.5% and
    97.5% quantiles. Of more than 1,000 documents, those with the same number modulo 1,000 are drawn
    together.
    """

    def __init__(self):
        self._losses = np.zeros((GROUPS, len(KINDS), COLUMNS))
        self._tokens = np.zeros((GROUPS, len(KINDS), COLUMNS))

    def add(self, batch: Batch, losses: Float[np.ndarray, "batch T"], places: Places) -> None:
        """Adds a batch; `losses` are those of its targets."""
        predicted = batch.weights > 0
        group = batch.documents[predicted] % GROUPS
        losses = losses[predicted].astype(np.float64)
        columns = [np.zeros_like(group), np.frexp(places.context // FIRST_BUCKET)[1][predicted]]
        for distance in (places.token, places.pair):
            if distance is not None:  # 1 is in bucket 0; what has never occurred, in bucket -1
                columns.append(np.frexp(distance)[1][predicted] - 1)
        for kind, column in enumerate(columns):
            np.add.at(self._losses, (group, kind, column), losses)
            np.add.at(self._tokens, (group, kind, column), 1)

    def __add__(self, other: "Breakdown") -> "Breakdown":
        """The sums of both, such as those of two models: their mean loss is the mean of the two."""
        return Breakdown.from_arrays(self._losses + other._losses, self._tokens + other._tokens)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sums, to be saved; `from_arrays` makes a breakdown of them."""
        return {"losses": self._losses, "tokens": self._tokens}

    @classmethod
    def from_arrays(cls, losses: np.ndarray, tokens: np.ndarray) -> "Breakdown":
        """The breakdown with these sums."""
        breakdown = cls()
        breakdown._losses, breakdown._tokens = losses, tokens
        return breakdown

    @property
    def total_loss(self) -> float:
        """The loss of the complete text in nats, not divided by its tokens."""
        return float(self._losses[:, 0].sum())

    @property
    def total_tokens(self) -> int:
        """The number of predicted tokens."""
        return int(self._tokens[:, 0].sum())

    @property
    def documents(self) -> int:
        """The number of documents, or of groups of documents, that an interval resamples."""
        return int(np.count_nonzero(self._tokens[:, 0, 0]))

    def buckets(self, kind: str, minus: "Breakdown | None" = None) -> list[Bucket]:
        """The buckets of a kind that have tokens.

        With `minus`, what another model loses on the same text, `loss` is the difference to it. Its
        interval resamples the documents of both models together.

        Raises:
            ValueError: `minus` is of another text, or has other buckets.
        """
        index = KINDS.index(kind)
        used = self._tokens[:, 0, 0] > 0
        tokens, losses = self._tokens[used, index], self._losses[used, index]
        if minus is not None:
            if not np.array_equal(self._tokens[:, index], minus._tokens[:, index]):
                raise ValueError("losses of different tokens cannot be subtracted")
            losses = losses - minus._losses[used, index]
        counts = tokens.sum(axis=0)
        intervals = _intervals(losses, tokens)
        return [
            Bucket(
                *_range(kind, column),
                tokens=int(counts[column]),
                loss=float(losses[:, column].sum() / counts[column]),
                interval=intervals[column],
            )
            for column in np.flatnonzero(counts).tolist()
        ]


def _intervals(losses, tokens) -> list[tuple[float, float] | None]:
    """An interval for each bucket, from sums by document and bucket, both [documents, COLUMNS]."""
    documents = len(losses)
    if documents < FEWEST:
        return [None] * COLUMNS
    rng = np.random.default_rng(0)  # the same documents for each kind and each model
    draws = rng.multinomial(documents, np.full(documents, 1 / documents), size=DRAWS)
    intervals = []
    for column in range(COLUMNS):
        has = tokens[:, column] > 0
        if has.sum() < FEWEST:
            intervals.append(None)
            continue
        counts = draws[:, has] @ tokens[has, column]
        means = (draws[:, has] @ losses[has, column])[counts > 0] / counts[counts > 0]
        low, high = np.quantile(means, QUANTILES)
        intervals.append((float(low), float(high)))
    return intervals


def _range(kind: str, column: int) -> tuple[int | None, int | None]:
    """First and last number of tokens of a bucket."""
    if kind == "total" or (kind != "position" and column == COLUMNS - 1):
        return None, None
    if kind == "position":
        first = FIRST_BUCKET << column - 1 if column else 0
        return first, 2 * first - 1 if first else FIRST_BUCKET - 1
    return 1 << column, (2 << column) - 1
