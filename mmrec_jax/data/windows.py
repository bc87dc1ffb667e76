"""Windows of a split as a batch, and random orders."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmrec_jax.data.dataset import Split

if TYPE_CHECKING:
    import grain


class Batch(NamedTuple):
    """Sequences to read, and the token that follows each of their tokens.

    All arrays are [batch, time], except `fresh`, which is [batch].
    """

    tokens: np.ndarray  # int32
    documents: np.ndarray  # int32, the document number of each token
    targets: np.ndarray  # int32, the next tokens
    weights: np.ndarray  # float32: 1 where the target is to be predicted, else 0
    fresh: np.ndarray  # bool: false where the sequence continues that of the previous batch


@functools.lru_cache(maxsize=64)  # Grain never forgets an order altogether
def shuffled(count: int, *seeds: int) -> "grain.MapDataset":
    """The numbers below `count` in a random order, computed without an array of them."""
    import grain  # takes long, and only training shuffles

    (seed,) = np.random.SeedSequence(seeds).generate_state(1)
    return grain.MapDataset.range(count).shuffle(seed=int(seed))


def windows(
    split: Split, starts: Sequence[int], seq_len: int, fresh: bool | Sequence[bool]
) -> Batch:
    """The windows that start at given tokens; positions past the end of the split are padding.

    `fresh`: for each window, or for all, whether it begins with an empty memory.
    """
    shape = len(starts), seq_len + 1
    tokens, documents = np.full(shape, split.padding, np.int32), np.zeros(shape, np.int32)
    known = np.zeros(shape, bool)
    for row, start in enumerate(starts):
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
        fresh=np.full(len(tokens), fresh, bool),
    )
