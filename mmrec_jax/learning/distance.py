"""Where each target stands in its document: how much precedes it, and when it last occurred."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mmrec_jax.data.batches import Batch


class Places(NamedTuple):
    """Where the targets of a batch stand in what their lanes have read of their documents.

    A distance is the number of tokens from the last earlier occurrence to the target: 1 if they are
    adjacent, 0 if there is none. It does not depend on whether memory is carried.
    """

    context: Int[np.ndarray, "batch T"]  # tokens of the document before the last token read
    token: Int[np.ndarray, "batch T"] | None  # distance of the target
    pair: Int[np.ndarray, "batch T"] | None  # distance of the last token read and the target


class Follower:
    """Follows the lanes through the batches of a text.

    It remembers the last position of every token and of every pair of tokens in the document that a
    lane is in, so its memory is bounded by the longest document.
    """

    def __init__(self, distances: bool):
        """`distances`: whether to measure them, which takes up to a microsecond per token."""
        self._distances = distances
        self._last = None
        self._seen: list[tuple[dict, dict]] = []

    def places(self, batch: Batch) -> Places:
        """The places of the targets of the next batch; where nothing is predicted, any number."""
        context, self._last = _context(batch, self._last)
        if not self._distances:
            return Places(context, None, None)
        self._seen = self._seen or [({}, {}) for _ in context]
        lanes = zip(batch.tokens, batch.targets, context, self._seen, strict=True)
        token, pair = zip(*(_lane_distances(*lane) for lane in lanes), strict=True)
        return Places(context, np.array(token), np.array(pair))


def _context(batch: Batch, last) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """For each token, how many of its document precede it in its lane; and the next `last`."""
    count, document = (-1, -1) if last is None else last
    count = np.where(batch.fresh | (batch.documents[:, 0] != document), -1, count)
    starts = np.diff(batch.documents, axis=1, prepend=batch.documents[:, :1]) != 0
    index = np.arange(batch.documents.shape[1])
    start = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    begun = np.maximum.accumulate(starts, axis=1)
    context = np.where(begun, index - start, count[:, None] + 1 + index)
    return context, (context[:, -1], batch.documents[:, -1])


def _lane_distances(tokens, targets, context, seen) -> tuple[list[int], list[int]]:
    """Distances of the targets, and of the pairs that they complete, in one lane of a batch.

    A loop with two dictionaries: sorting each window in NumPy was faster only for some lengths.
    """
    of_token, of_pair = seen  # the last position of each token and of each pair in the document
    token_distances, pair_distances = [], []
    pairs = tokens.astype(np.int64) << 32 | targets
    columns = (column.tolist() for column in (tokens, targets, pairs, context + 1))
    for token, target, pair, position in zip(*columns, strict=True):
        if position == 1:  # the target is the second token of a document
            of_token.clear()
            of_pair.clear()
            of_token[token] = 0
        token_distances.append(position - of_token.get(target, position))
        pair_distances.append(position - of_pair.get(pair, position))
        of_token[target] = of_pair[pair] = position
    return token_distances, pair_distances
