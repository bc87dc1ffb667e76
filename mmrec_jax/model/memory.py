"""Short-term and long-term memory of a layer, and the attention of a token over both.

Time is divided into chunks of C tokens. A query attends to the S tokens before its chunk and to the
chunk up to itself (short-term memory), and to the bank: per head, M of all older tokens (long-term
memory). Rotary positions are exact up to S + C + M tokens before the chunk; older tokens are read
as if they were there. So the bank would be the far part of a sliding window of S + C + M tokens if
it kept the newest tokens. Instead it keeps those that are expected to be used most, and adds the
logarithm of their expected use to their logits (`bank_bias`).

When a chunk is complete, the C tokens that leave short-term memory are offered to the bank
(consolidation). Of tokens that say the same, only one is kept (`repeated`); of the others, the bank
keeps those with the highest forecasts of use (`Saliency`) at their present ages.

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

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.ops import attend, similarity

ROPE_BASE = 10_000.0
# Forecasts that differ by at most this count as equal. Equal tokens have equal saliency in the
# first layer, but the forms of the model round it differently; if they compared it to the last bit,
# they would keep different tokens.
TIE = 1e-4
# Two tokens say the same if the cosines of their keys and of their values average more than this.
SAME = 0.9
# s before training: no token is expected to be used. Otherwise a bank that is carried from the
# first steps on would hold on to tokens that an untrained model has chosen.
INITIAL_SALIENCY = -4.0


class Saliency(NamedTuple):
    """What is known of a token's use by later queries; the forecast for an age is `forecast`."""

    s: Float[Array, "*batch"]  # the logit of use when it leaves short-term memory; -inf: no token
    fading: Float[Array, "*batch"]  # lambda >= 0: how the logit falls with age


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
    s: Saliency,
    last_k: Float[Array, "batch heads K"],
    last_s: Saliency,
    start: Bool[Array, "batch T"],
) -> tuple[Float[Array, "batch heads T K"], Saliency]:
    """In heads 0, 2, ..., replaces each token's key and saliency by those of the token before it.

    Such a head finds what came *after* an earlier occurrence of what it looks for; how often it
    will look for that, the token before knows. The first token of a document gets a zero key, and
    keeps its own saliency.
    """

    def shift(x, last, first):
        def of_heads_and_time(mask):  # [heads or 1, T or 1] after a batch
            return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))

        before = jnp.concatenate([last[:, :, None], x[:, :, :-1]], axis=2)
        before = jnp.where(of_heads_and_time(start[:, None]), first, before)
        even = (jnp.arange(x.shape[1]) % 2 == 0)[None, :, None]
        return jnp.where(of_heads_and_time(even), before, x)

    return shift(k, last_k, 0), jax.tree.map(lambda x, last: shift(x, last, x), s, last_s)


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


def farthest(config: ModelConfig) -> int:
    """Distances from here on make no difference, to the reading or to the forecast."""
    oldest = config.short_term + 1 + config.chunk_len * config.oldest_age
    return max(config.seen_tokens, oldest)


def rotate_back(
    k: Float[Array, "*batch M K"], distance: Int[Array, "... M"], config: ModelConfig
) -> Float[Array, "*batch M K"]:
    """Rotates keys of the bank, which stand `distance` tokens before the current chunk.

    Positions count from S tokens before the chunk, as those of the near tokens do.
    """
    reach = config.seen_tokens
    cos, sin = rotary(config.short_term - np.arange(reach + 1), k.shape[-1], k.dtype)
    distance = jnp.minimum(distance, reach)
    return turn(k, cos[distance], sin[distance])


def log_age(
    distance: Int[Array, "*batch"], config: ModelConfig, dtype: DTypeLike
) -> Float[Array, "*batch"]:
    """log(1 + min(a, A)), where a is the number of chunks since the token left short-term memory.

    No age beyond A is told apart, so what has not faded by then never does.
    """
    age = (distance - config.short_term - 1) // config.chunk_len
    return jnp.log1p(jnp.clip(age, 0, config.oldest_age).astype(dtype))


def forecast(
    saliency: Saliency, distance: Int[Array, "..."], config: ModelConfig
) -> Float[Array, "..."]:
    """The logit of use, s - lambda log(1 + min(a, A)), in a chunk `distance` tokens after it."""
    return saliency.s - saliency.fading * log_age(distance, config, saliency.s.dtype)


def bank_bias(forecasts: Float[Array, "*batch M"]) -> Float[Array, "*batch M"]:
    """What is added to the logits of the bank: log sigma(forecast) - log sigma(INITIAL_SALIENCY).

    So an untrained model reads the bank like a part of the window, and a trained one reads above
    all what it expects to use. An empty slot has a forecast of -inf. There is no gradient: saliency
    learns from its own loss (saliency.py).
    """
    initial = np.log1p(np.exp(-INITIAL_SALIENCY))  # - log sigma
    return lax.stop_gradient(jax.nn.log_sigmoid(forecasts) + initial)


def directions(
    k: Float[Array, "*batch P K"], v: Float[Array, "*batch P K"]
) -> Float[Array, "*batch P K_and_K"]:
    """What tokens are compared by: a product of two is the mean cosine of keys and of values."""

    def unit(x):
        x = lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        return x * lax.rsqrt(2 * jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)

    return jnp.concatenate([unit(k), unit(v)], axis=-1)


def repeated(
    direction: Float[Array, "*batch P K_and_K"], forecasts: Float[Array, "*batch P"], chunk_len: int
) -> Bool[Array, "*batch P"]:
    """Which candidates for the bank, newest first, have nothing to say that another does not.

    Each of the first C is compared with all that are older. Of two that say the same, the one with
    the lower forecast is dropped, so that its place is free for others; of equal ones, the older. A
    forecast of -inf is that of no token.
    """
    older = np.arange(chunk_len)[:, None] < np.arange(direction.shape[-2])
    same = direction[..., :chunk_len, :] @ jnp.swapaxes(direction, -1, -2) > SAME
    new = forecasts[..., :chunk_len]
    same &= older & jnp.isfinite(new)[..., None] & jnp.isfinite(forecasts)[..., None, :]
    newer_wins = new[..., None] + TIE >= forecasts[..., None, :]
    dropped = jnp.any(same & newer_wins, axis=-2)
    lost = jnp.any(same & ~newer_wins, axis=-1)
    return dropped.at[..., :chunk_len].set(dropped[..., :chunk_len] | lost)


def most_useful(forecasts: Float[Array, "*batch P"], slots: int) -> Int[Array, "*batch M"]:
    """Indices of the M highest forecasts; of equal ones, the earlier.

    Each is ranked by the highest forecast that is at most TIE above its own.
    """
    equal = forecasts[..., None, :] <= forecasts[..., None] + TIE
    rank = jnp.max(jnp.where(equal, forecasts[..., None, :], -jnp.inf), axis=-1)
    return lax.top_k(rank, slots)[1]


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
    bank_logits += bank_bias(forecast(long_s, state.long_distance, config))[:, :, None]
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
    dropped = repeated(directions(k, v), forecast(s, distance, config), chunk_len)
    s = s._replace(s=jnp.where(dropped, -jnp.inf, s.s))
    chosen = most_useful(forecast(s, distance, config), config.long_term)

    def choose_from(x):
        return jnp.take_along_axis(x, chosen.reshape(*chosen.shape, *(1,) * (x.ndim - 3)), axis=2)

    stay = jax.tree.map(lambda x: x[:, :, chunk_len:], (state.near_k, state.near_v, state.near_s))
    consolidated = MemoryState(
        *followed_by_room(*stay, chunk_len),
        long_k=choose_from(k),
        long_v=choose_from(v),
        long_s=jax.tree.map(choose_from, s),
        long_distance=choose_from(distance),
    )
    return choose(place.full, consolidated, state)


def choose(condition: Bool[Array, "batch"], new: Any, old: Any) -> Any:
    """Takes `new` where the condition holds, else `old`: trees of arrays [batch, ...]."""

    def one(new, old):
        return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(one, new, old)
