"""The memories over a complete sequence that begins a chunk; equal to memory.py token by token.

The bank is never built token by token. A scan over chunks selects *indices* by top-k over M + C
forecasts, then keys and values are gathered. Cost and memory grow as T (S + C + M).

Letters in shapes: as in memory.py; n = T / C chunks; P = M + S + T is the pool of tokens that a
sequence can read: the bank and short-term memory at its start, then the sequence itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mmrec_jax.config import ModelConfig
from mmrec_jax.model import layout
from mmrec_jax.model.bank import (
    Saliency,
    directions,
    farthest,
    rotate_back,
    select,
)
from mmrec_jax.model.memory import FOUND, MemoryState, Read, Segments, followed_by_room
from mmrec_jax.model.ops import attend, similarity
from mmrec_jax.model.rotary import rotate


class Tokens(NamedTuple):
    """Tokens that can be read; positions count from the first token of the sequence."""

    k: Float[Array, "batch heads P K"]
    v: Float[Array, "batch heads P K"]
    s: Saliency  # [batch, heads, P]
    position: Int[Array, "batch heads P"]
    segment: Int[Array, "batch P"]  # the document


def select_salient(
    config: ModelConfig,
    s: Saliency,
    position: Int[Array, "batch heads P"],
    segment: Int[Array, "batch P"],
    direction: Float[Array, "batch heads P K_and_K"],
    chunk_segment: Int[Array, "batch n"],
) -> tuple[Int[Array, "batch heads n_plus_1 M"], Float[Array, "batch heads n_plus_1 M"]]:
    """Indices into the pool of the M tokens that each chunk can read in the bank.

    Tokens of a document that has ended are dropped: nothing can read them anymore, and a new
    document must not depend on them.

    Args:
        config: of the model.
        s, position, segment, direction: saliencies [batch, heads, P], positions, documents and
            directions (`bank.directions`) of the pool.
        chunk_segment: the document of each chunk's last token.

    Returns:
        For each chunk, and for the one after the last: indices into the pool, and s (-inf where a
        slot is empty).
    """
    chunk_len, slots = config.chunk_len, config.long_term
    batch, heads, _ = position.shape
    num_chunks = chunk_segment.shape[1]

    def offered(x):  # after the bank, chunk c of the pool is what leaves when chunk c is complete
        x = x[..., slots : slots + num_chunks * chunk_len]
        x = x.reshape(*x.shape[:-1], num_chunks, chunk_len)
        return jnp.moveaxis(jnp.flip(x, -1), -2, 0)

    def consolidate(bank, x):
        index, bank_s, bank_segment = bank
        new_index, new_s, new_segment, current, end = x
        new_s = jnp.where((new_segment == current[:, None])[:, None], new_s, -jnp.inf)
        bank_s = jnp.where((bank_segment == current)[:, None, None], bank_s, -jnp.inf)
        new_index = jnp.broadcast_to(new_index, (batch, heads, chunk_len))
        candidates = jnp.concatenate([new_index, index], axis=-1)

        def take(x):
            return jnp.take_along_axis(x, candidates, axis=-1)

        distance = end - take(position)
        of_candidates = Saliency(jnp.concatenate([new_s, bank_s], axis=-1), take(s.fading))
        direction_of = jnp.take_along_axis(direction, candidates[..., None], axis=2)
        kept, kept_s = select(of_candidates, distance, direction_of, config)
        index = jnp.take_along_axis(candidates, kept, axis=-1)
        return (index, kept_s, current), (index, kept_s)

    index = jnp.broadcast_to(jnp.arange(slots), (batch, heads, slots))
    first = (index, s.s[..., :slots], jnp.zeros(batch, segment.dtype))
    pool_index = jnp.arange(position.shape[-1])
    ends = chunk_len * jnp.arange(1, num_chunks + 1)
    xs = (offered(pool_index), offered(s.s), offered(segment), chunk_segment.T, ends)
    _, later = lax.scan(consolidate, first, xs)
    return tuple(
        jnp.moveaxis(jnp.concatenate([x[None], xs]), 0, 2)
        for x, xs in zip(first[:2], later, strict=True)
    )


def read_memories(
    q: Float[Array, "batch heads T K"],
    k: Float[Array, "batch heads T K"],
    v: Float[Array, "batch heads T K"],
    s: Saliency,
    segments: Segments,
    state: MemoryState,
    config: ModelConfig,
) -> Read:
    """Attention of every token of a sequence over short-term and long-term memory.

    Args:
        q, k, v: queries, keys (shifted in heads with shifted keys) and values. T is a multiple of
            C.
        s: saliencies [batch, heads, T], float32; no gradient flows through them here.
        segments: which tokens belong to one document.
        state: the memory before the first token, which begins a chunk.
        config: of the model.
    """
    chunk_len, short_term, time = config.chunk_len, config.short_term, q.shape[2]
    batch, heads = q.shape[:2]
    k, v, s = layout.whole_sequences((k, v, s))

    def after_near(before, new):  # the first S near tokens of the state, then the sequence
        return jnp.concatenate([before[:, :, :short_term], new], axis=2)

    position = jnp.arange(-short_term, time, dtype=jnp.int32)
    near = Tokens(
        k=after_near(state.near_k, k),
        v=after_near(state.near_v, v),
        s=jax.tree.map(after_near, state.near_s, lax.stop_gradient(s)),
        position=jnp.broadcast_to(position, (batch, heads, len(position))),
        segment=jnp.concatenate([segments.short, segments.tokens], axis=1),
    )
    bank_segment = jnp.zeros((batch, config.long_term), near.segment.dtype)
    long = Tokens(state.long_k, state.long_v, state.long_s, -state.long_distance, bank_segment)
    q_chunks = _chunks(q, chunk_len, axis=2)
    # Positions count from S tokens before the chunk.
    q_chunks = rotate(q_chunks, short_term + np.arange(chunk_len))
    segment = _chunks(segments.tokens, chunk_len, axis=1)

    logits, values = _short_term(q_chunks, segment, near)
    window_logsumexp = jax.nn.logsumexp(lax.stop_gradient(logits), axis=-1)
    if config.long_term:
        long_logits, long_values, long = _long_term(q_chunks, segment, near, long, config)
        logits = jnp.concatenate([long_logits, logits], axis=-1)
        values = jnp.concatenate([long_values, values], axis=3)
    stay = jax.tree.map(lambda x: x[:, :, time:], near[:3])
    return Read(
        output=attend(logits, values).reshape(q.shape),
        window_logsumexp=window_logsumexp.reshape(q.shape[:3]),
        state=MemoryState(
            *followed_by_room(*stay, chunk_len),
            *long[:3],
            long_distance=jnp.minimum(time - long.position, farthest(config)),
        ),
    )


def _short_term(q, segment, near: Tokens):
    """Logits and values of the S tokens before each chunk and of the chunk so far."""
    chunk_len, short_term = q.shape[3], near.k.shape[2] - q.shape[2] * q.shape[3]
    positions = np.arange(short_term + chunk_len)
    k = rotate(layout.by_token(_windows(near.k, chunk_len, short_term, axis=2), axis=2), positions)
    same = segment[..., :, None] == _windows(near.segment, chunk_len, short_term, 1)[..., None, :]
    causal = positions <= positions[short_term:, None]
    logits = similarity(q, k)
    logits = jnp.where((same & causal)[:, None], logits, -jnp.inf)
    return logits, layout.by_token(_windows(near.v, chunk_len, short_term, axis=2), axis=2)


def _long_term(q, segment, near: Tokens, long: Tokens, config: ModelConfig):
    """Logits and values of the bank that each chunk reads, and the bank after the last chunk."""
    batch, heads, num_chunks, chunk_len, _ = q.shape
    last_segment = segment[:, :, -1]  # of each chunk
    k, v, s, position = jax.tree.map(
        lambda of_long, of_near: jnp.concatenate([of_long, of_near], axis=2), long[:4], near[:4]
    )
    pool_segment = jnp.concatenate([long.segment, near.segment], axis=1)
    choose = layout.on_own_sequences(functools.partial(select_salient, config))
    chosen = choose(s, position, pool_segment, directions(k, v), last_segment)
    index, bank_s = checkpoint_name(chosen, FOUND)

    def gather(x, index):  # [.., P, K] and [.., n, M] -> [.., n, M, K], or without K
        flat = index.reshape(batch, heads, -1, *(1,) * (x.ndim - 3))
        x = jnp.take_along_axis(x, flat, axis=2)
        return x.reshape(*index.shape, *x.shape[3:])

    read = layout.by_token(index[:, :, :-1], axis=2)
    bank_k, bank_v = (layout.by_token(gather(x, read), axis=2) for x in (k, v))
    distance = chunk_len * np.arange(num_chunks, dtype=np.int32)[:, None] - gather(position, read)
    logits = similarity(q, rotate_back(bank_k, distance, config))
    bank_segment = jnp.pad(last_segment[:, :-1], ((0, 0), (1, 0)))
    same = segment == bank_segment[..., None]
    filled = jnp.isfinite(bank_s[:, :, :-1])
    readable = same[:, None, :, :, None] & filled[:, :, :, None]
    logits = jnp.where(readable, logits, -jnp.inf)
    last_k, last_v, fading, last_position = (
        gather(x, index[:, :, -1:])[:, :, 0] for x in (k, v, s.fading, position)
    )
    last = last_k, last_v, Saliency(bank_s[:, :, -1], fading), last_position
    return logits, bank_v, Tokens(*last, segment=last_segment[:, -1:])


def _chunks(x: Array, chunk_len: int, axis: int) -> Array:
    """[.., m C, ..] -> [.., m, C, ..]"""
    return x.reshape(*x.shape[:axis], -1, chunk_len, *x.shape[axis + 1 :])


def _windows(x: Array, chunk_len: int, short_term: int, axis: int) -> Array:
    """Each chunk after the S tokens before it: [.., S + n C, ..] -> [.., n, S + C, ..]"""
    x = _chunks(x, chunk_len, axis)
    before = short_term // chunk_len
    num_chunks = x.shape[axis] - before
    parts = [
        lax.slice_in_dim(x, first, first + num_chunks, axis=axis) for first in range(before + 1)
    ]
    return jnp.concatenate(parts, axis=axis + 1)
