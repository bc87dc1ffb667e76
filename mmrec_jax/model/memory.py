"""Short-term and long-term memory of a layer, and the attention of a token over both.

Time is divided into chunks of C tokens. A query attends to the S tokens before its chunk and to the
chunk up to itself (short-term memory), and to the bank: per head, M of all older tokens (long-term
memory). Rotary positions are exact up to S + C + M tokens before the chunk; older tokens are read
as if they were there. So the bank would be the far part of a sliding window of S + C + M tokens if
it kept the newest tokens. Instead it keeps those that are expected to be used most.

When a chunk is complete, the C tokens that leave short-term memory are offered to the bank
(consolidation). Of tokens that say the same, only one is kept (`repeated`); of the others, the bank
keeps those with the highest forecasts of use (`Saliency`) at their present ages.

This file has the state and the form for one token at a time; memory_sequence.py has the form for a
complete sequence.

Letters in shapes: B batch, T time, H heads, K head width, S, C, M as above.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.bank import (
    Saliency,
    directions,
    farthest,
    rotate_back,
    select,
)
from mmrec_jax.model.ops import attend, similarity
from mmrec_jax.model.rotary import rotary, turn

# What a loop over chunks has found, by which name model.remat keeps it: it takes long to find, and
# little room.
FOUND = "found chunk by chunk"


class MemoryState(NamedTuple):
    """A layer's short- and long-term memory. Empty slots have saliency -inf.

    The near tokens are the S tokens before the current chunk, then C slots for the chunk itself.
    """

    near_k: Float[Array, "batch heads near K"]
    near_v: Float[Array, "batch heads near K"]
    near_s: Saliency  # [batch, heads, near]
    long_k: Float[Array, "batch heads M K"]
    long_v: Float[Array, "batch heads M K"]
    long_s: Saliency  # [batch, heads, M]
    # How many tokens before the current chunk a token stands, at most `farthest`.
    long_distance: Int[Array, "batch heads M"]


class Segments(NamedTuple):
    """Which tokens of a complete sequence belong to the same document.

    Documents are numbered from 0, the one in which the state ended.
    """

    start: Bool[Array, "batch T"]  # true where a document starts
    tokens: Int[Array, "batch T"]  # the document of each token
    short: Int[Array, "batch S"]  # the same for short-term memory; -1 for an earlier document
    scored: Bool[Array, "batch T"] | None = None  # whose predictions count; None: those of all


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


def shift(
    x: Float[Array, "batch heads T width"],
    last: Float[Array, "batch heads width"],
    start: Bool[Array, "batch T"],
    first: ArrayLike,
) -> Float[Array, "batch heads T width"]:
    """In heads 0, 2, ..., what belongs to the token before: the last one's for the first token.

    A head with shifted keys finds what came *after* an earlier occurrence of what it looks for.
    Where a document starts, there is `first` instead.
    """
    before = jnp.concatenate([last[:, :, None], x[:, :, :-1]], axis=2)
    before = jnp.where(start[:, None, :, None], first, before)
    even = np.arange(x.shape[1]) % 2 == 0
    return jnp.where(even[:, None, None], before, x)


def followed_by_room(k, v, s: Saliency, slots: int) -> tuple[Array, Array, Saliency]:
    """The near tokens after a chunk: those that stay, then empty slots for the next chunk."""
    room = ((0, 0), (0, 0), (0, slots))
    k, v = (jnp.pad(x, (*room, (0, 0))) for x in (k, v))
    return k, v, Saliency(jnp.pad(s.s, room, constant_values=-jnp.inf), jnp.pad(s.fading, room))


def read_memories_once(
    q: Float[Array, "batch heads 1 K"],
    k: Float[Array, "batch heads 1 K"],
    v: Float[Array, "batch heads 1 K"],
    s: Saliency,
    place: Place,
    state: MemoryState,
    config: ModelConfig,
) -> Read:
    """The same as `read_memories`, for one token at any position in its chunk."""
    num_near = state.near_k.shape[2]
    here = (jnp.arange(num_near) == place.slot[:, None])[:, None]
    near_k = jnp.where(here[..., None], k, state.near_k)
    near_v = jnp.where(here[..., None], v, state.near_v)
    near_s = jax.tree.map(lambda new, old: jnp.where(here, new, old), s, state.near_s)
    kept = jnp.where(place.start[:, None], -jnp.inf, state.long_s.s)
    long_s = state.long_s._replace(s=kept)

    cos, sin = rotary(np.arange(num_near), q.shape[-1], q.dtype)
    q = turn(q, cos[place.slot][:, None, None], sin[place.slot][:, None, None])
    near_logits = similarity(q, turn(near_k, cos, sin))
    near_logits = jnp.where(place.live[:, None, None], near_logits, -jnp.inf)
    bank_logits = similarity(q, rotate_back(state.long_k, state.long_distance, config))
    bank_logits = jnp.where(jnp.isfinite(long_s.s)[:, :, None], bank_logits, -jnp.inf)
    logits = jnp.concatenate([bank_logits, near_logits], axis=-1)
    values = jnp.concatenate([state.long_v, near_v], axis=2)

    after = state._replace(near_k=near_k, near_v=near_v, near_s=near_s, long_s=long_s)
    return Read(
        output=attend(logits, values),
        window_logsumexp=jax.nn.logsumexp(near_logits, axis=-1),
        state=lax.cond(
            jnp.any(place.full), lambda: _consolidate(after, place, config), lambda: after
        ),
    )


def _consolidate(state: MemoryState, place: Place, config: ModelConfig) -> MemoryState:
    """Where a chunk is full, the first C near tokens leave and are offered to the bank."""
    chunk_len = config.chunk_len

    def candidates(new, bank):  # what leaves, newest first, then the bank
        return jnp.concatenate([jnp.flip(new[:, :, :chunk_len], axis=2), bank], axis=2)

    near_s = state.near_s._replace(s=jnp.where(place.live[:, None], state.near_s.s, -jnp.inf))
    s = jax.tree.map(candidates, near_s, state.long_s)
    k, v = candidates(state.near_k, state.long_k), candidates(state.near_v, state.long_v)
    leaving = config.short_term + chunk_len - jnp.arange(chunk_len, dtype=jnp.int32)
    distance = candidates(
        jnp.broadcast_to(leaving, (*state.long_distance.shape[:2], chunk_len)),
        jnp.minimum(state.long_distance + chunk_len, farthest(config)),
    )
    kept, kept_s = select(s, distance, directions(k, v), config)

    def kept_of(x):
        return jnp.take_along_axis(x, kept.reshape(*kept.shape, *(1,) * (x.ndim - 3)), axis=2)

    stay = jax.tree.map(lambda x: x[:, :, chunk_len:], (state.near_k, state.near_v, state.near_s))
    consolidated = MemoryState(
        *followed_by_room(*stay, chunk_len),
        long_k=kept_of(k),
        long_v=kept_of(v),
        long_s=Saliency(kept_s, kept_of(s.fading)),
        long_distance=kept_of(distance),
    )
    return choose(place.full, consolidated, state)


def choose(condition: Bool[Array, "batch"], new: Any, old: Any) -> Any:
    """Takes `new` where the condition holds, else `old`: trees of arrays [batch, ...]."""

    def one(new, old):
        return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(one, new, old)
