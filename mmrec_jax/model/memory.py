"""Short-term and long-term memory of a layer, and the attention of a token over both.

Time is divided into chunks of C tokens. A query attends to the S tokens before its chunk and to the
chunk up to itself (short-term memory, rotary positions), and to the bank: per head, the M most
salient of all older tokens (long-term memory). Whatever their age, tokens of the bank are read as
if they were S + C tokens away, and log sigma(s), their predicted use, is added to their logits.
When a chunk is complete, the C tokens that leave short-term memory are offered to the bank
(consolidation).

This file has the state and the form for one token at a time; memory_sequence.py has the form for a
complete sequence.

Letters in shapes: B batch, T time, H heads, K head width, S, C, M as above.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.model.ops import attend, similarity

ROPE_BASE = 10_000.0
# Saliencies that differ by at most this count as equal. Equal tokens have equal saliency in the
# first layer, but the forms of the model round it differently; if they compared it to the last bit,
# they would keep different tokens.
TIE = 1e-4


class MemoryState(NamedTuple):
    """A layer's short- and long-term memory. Empty slots have saliency -inf.

    The near tokens are the S tokens before the current chunk, then C slots for the chunk itself.
    """

    near_k: Float[Array, "batch heads near K"]
    near_v: Float[Array, "batch heads near K"]
    near_s: Float[Array, "batch heads near"]
    long_k: Float[Array, "batch heads M K"]
    long_v: Float[Array, "batch heads M K"]
    long_s: Float[Array, "batch heads M"]


class Segments(NamedTuple):
    """Which tokens of a complete sequence belong to the same document.

    Documents are numbered from 0, the one in which the state ended.
    """

    start: Bool[Array, "batch T"]  # true where a document starts
    tokens: Int[Array, "batch T"]  # the document of each token
    short: Int[Array, "batch S"]  # the same for short-term memory; -1 for an earlier document


class Place(NamedTuple):
    """The place of a single token."""

    start: Bool[Array, "batch 1"]  # whether it starts a document
    slot: Int[Array, "batch"]  # its index among the near tokens: S + its position in the chunk
    live: Bool[Array, "batch near"]  # which near tokens belong to its document, itself included
    full: Bool[Array, "batch"]  # whether it completes its chunk


class Read(NamedTuple):
    """What a layer reads from its memories, and what the saliency loss needs."""

    output: Float[Array, "batch heads T K"]
    window_logsumexp: Float[Array, "batch heads T"]  # of the logits over short-term memory
    state: MemoryState


def shift_keys(
    k: Float[Array, "batch heads T K"],
    last_k: Float[Array, "batch heads K"],
    start: Bool[Array, "batch T"],
) -> Float[Array, "batch heads T K"]:
    """In heads 0, 2, ..., replaces each token's key by that of the token before it.

    Such a head finds what came *after* an earlier occurrence of what it looks for. The first token
    of a document gets a zero key.
    """
    before = jnp.concatenate([last_k[:, :, None], k[:, :, :-1]], axis=2)
    before = jnp.where(start[:, None, :, None], 0, before)
    even = (jnp.arange(k.shape[1]) % 2 == 0)[:, None, None]
    return jnp.where(even, before, k)


def rotary(
    positions: Sequence[int] | np.ndarray, head_dim: int, dtype: DTypeLike
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """Cosines and sines of rotary positions (Su et al., 2021).

    Channels j and j + K/2 are rotated by position * base^(-2j/K). Positions are known when the
    program is traced, so the angles are computed in float64.
    """
    half = head_dim // 2
    angles = np.asarray(positions)[:, None] * ROPE_BASE ** (-np.arange(half) / half)
    return jnp.asarray(np.cos(angles), dtype), jnp.asarray(np.sin(angles), dtype)


def turn(
    x: Float[Array, "*batch K"], cos: Float[Array, "*T half"], sin: Float[Array, "*T half"]
) -> Float[Array, "*batch K"]:
    """Rotates channels j and j + K/2 of queries or keys by the angles of `rotary`."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotate(
    x: Float[Array, "*batch T K"], positions: Sequence[int] | np.ndarray
) -> Float[Array, "*batch T K"]:
    """Rotates queries or keys to these positions: one for each of T, or a single one for all."""
    return turn(x, *rotary(positions, x.shape[-1], x.dtype))


def bank_bias(s: Float[Array, "*batch M"]) -> Float[Array, "*batch M"]:
    """The bias that is added to the logits of the bank: log sigma(s); -inf where a slot is empty.

    It keeps tokens that are not expected to be used from distracting. It has no gradient: saliency
    learns from its own loss (saliency.py).
    """
    return lax.stop_gradient(jax.nn.log_sigmoid(s))


def keep_most_salient(new_s, bank_s):
    """Selects the M most salient candidates: the offered tokens, newest first, then the bank.

    Each candidate is ranked by the largest saliency that is at most TIE above its own. Among equal
    ranks the newer token wins, because top-k prefers the earlier candidate.

    Returns:
        The saliencies of the selected candidates and their indices, both [batch, heads, M].
    """
    s = jnp.concatenate([new_s, bank_s], axis=-1)
    equal = s[..., None, :] <= s[..., None] + TIE
    rank = jnp.max(jnp.where(equal, s[..., None, :], -jnp.inf), axis=-1)
    _, chosen = lax.top_k(rank, bank_s.shape[-1])
    return jnp.take_along_axis(s, chosen, axis=-1), chosen


def followed_by_room(k, v, s, slots: int) -> tuple[Array, Array, Array]:
    """The near tokens after a chunk: those that stay, then empty slots for the next chunk."""
    padding = ((0, 0), (0, 0), (0, slots))
    k, v = (jnp.pad(x, (*padding, (0, 0))) for x in (k, v))
    return k, v, jnp.pad(s, padding, constant_values=-jnp.inf)


def read_memories_once(
    q: Float[Array, "batch heads 1 K"],
    k: Float[Array, "batch heads 1 K"],
    v: Float[Array, "batch heads 1 K"],
    s: Float[Array, "batch heads 1"],
    place: Place,
    state: MemoryState,
    chunk_len: int,
) -> Read:
    """The same as `read_memories`, for one token at any position in its chunk."""
    num_near = state.near_k.shape[2]
    here = (jnp.arange(num_near) == place.slot[:, None])[:, None]
    near_k = jnp.where(here[..., None], k, state.near_k)
    near_v = jnp.where(here[..., None], v, state.near_v)
    near_s = jnp.where(here, s, state.near_s)
    long_s = jnp.where(place.start[:, None], -jnp.inf, state.long_s)

    cos, sin = rotary(np.arange(num_near), q.shape[-1], q.dtype)
    turned = turn(q, cos[place.slot][:, None, None], sin[place.slot][:, None, None])
    near_logits = similarity(turned, turn(near_k, cos, sin))
    near_logits = jnp.where(place.live[:, None, None], near_logits, -jnp.inf)
    bank_logits = similarity(rotate(q, [num_near]), state.long_k) + bank_bias(long_s)[:, :, None]
    logits = jnp.concatenate([bank_logits, near_logits], axis=-1)
    values = jnp.concatenate([state.long_v, near_v], axis=2)

    after = MemoryState(near_k, near_v, near_s, state.long_k, state.long_v, long_s)
    return Read(
        output=attend(logits, values),
        window_logsumexp=jax.nn.logsumexp(near_logits, axis=-1),
        state=lax.cond(
            jnp.any(place.full), lambda: _consolidate(after, place, chunk_len), lambda: after
        ),
    )


def _consolidate(state: MemoryState, place: Place, chunk_len: int) -> MemoryState:
    """Where a chunk is full, the first C near tokens leave and are offered to the bank."""

    def offered(x):
        return jnp.flip(x[:, :, :chunk_len], axis=2)

    new_s = jnp.where(place.live[:, None], state.near_s, -jnp.inf)
    long_s, chosen = keep_most_salient(offered(new_s), state.long_s)

    def gather(new, bank):
        candidates = jnp.concatenate([offered(new), bank], axis=2)
        return jnp.take_along_axis(candidates, chosen[..., None], axis=2)

    stay = (x[:, :, chunk_len:] for x in (state.near_k, state.near_v, state.near_s))
    consolidated = MemoryState(
        *followed_by_room(*stay, chunk_len),
        long_k=gather(state.near_k, state.long_k),
        long_v=gather(state.near_v, state.long_v),
        long_s=long_s,
    )
    return choose(place.full, consolidated, state)


def choose(condition: Bool[Array, "batch"], new: Any, old: Any) -> Any:
    """Takes `new` where the condition holds, else `old`: trees of arrays [batch, ...]."""

    def one(new, old):
        return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(one, new, old)
