"""The memories over a complete sequence that begins a chunk; equal to memory.py token by token.

The bank is never built token by token. A scan over chunks selects *indices* by top-k over M + C
saliencies, then keys and values are gathered. Cost and memory grow as T (S + C + M).

Letters in shapes: as in memory.py; n = T / C chunks; P = M + S + T is the pool of tokens that a
sequence can read: the bank and short-term memory at its start, then the sequence itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mmrec_jax.model.memory import (
    MemoryState,
    Read,
    Segments,
    bank_bias,
    followed_by_room,
    keep_most_salient,
    rotate,
)
from mmrec_jax.model.ops import attend, similarity


class Tokens(NamedTuple):
    """Keys, values, saliencies and documents of tokens that can be read."""

    k: Float[Array, "batch heads P K"]
    v: Float[Array, "batch heads P K"]
    s: Float[Array, "batch heads P"]
    segment: Int[Array, "batch P"]


def select_salient(
    s: Float[Array, "batch heads P"],
    segment: Int[Array, "batch P"],
    chunk_segment: Int[Array, "batch n"],
    chunk_len: int,
    slots: int,
) -> tuple[Int[Array, "n_plus_1 batch heads M"], Float[Array, "n_plus_1 batch heads M"]]:
    """Indices into the pool of the M most salient tokens that each chunk can read.

    Tokens of a document that has ended are dropped: nothing can read them anymore, and a new
    document must not depend on them.

    Args:
        s, segment: saliencies and documents of the pool's tokens.
        chunk_segment: the document of each chunk's last token.
        chunk_len: C.
        slots: M.

    Returns:
        For each chunk, and for the one after the last: indices into the pool, and saliencies (-inf
        where a slot is empty).
    """
    batch, heads, _ = s.shape
    num_chunks = chunk_segment.shape[1]

    def offered(x):  # after the bank, chunk c of the pool is what leaves when chunk c is complete
        x = x[..., slots : slots + num_chunks * chunk_len]
        x = x.reshape(*x.shape[:-1], num_chunks, chunk_len)
        return jnp.moveaxis(jnp.flip(x, -1), -2, 0)

    def consolidate(bank, x):
        index, saliency, bank_segment = bank
        new_index, new_s, new_segment, current = x
        new_s = jnp.where((new_segment == current[:, None])[:, None], new_s, -jnp.inf)
        saliency = jnp.where((bank_segment == current)[:, None, None], saliency, -jnp.inf)
        candidates = jnp.concatenate(
            [jnp.broadcast_to(new_index, (batch, heads, chunk_len)), index], axis=-1
        )
        saliency, chosen = keep_most_salient(new_s, saliency)
        index = jnp.take_along_axis(candidates, chosen, axis=-1)
        return (index, saliency, current), (index, saliency)

    index = jnp.broadcast_to(jnp.arange(slots), (batch, heads, slots))
    first = (index, s[..., :slots], jnp.zeros(batch, segment.dtype))
    pool_index = jnp.arange(s.shape[-1])
    xs = (offered(pool_index), offered(s), offered(segment), chunk_segment.T)
    _, later = lax.scan(consolidate, first, xs)
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first[:2], later)


def read_memories(
    q: Float[Array, "batch heads T K"],
    k: Float[Array, "batch heads T K"],
    v: Float[Array, "batch heads T K"],
    s: Float[Array, "batch heads T"],
    segments: Segments,
    state: MemoryState,
    chunk_len: int,
) -> Read:
    """Attention of every token of a sequence over short-term and long-term memory.

    Args:
        q, k, v: queries, keys (shifted in heads with shifted keys) and values. T is a multiple of
            C.
        s: saliencies, float32; no gradient flows through them here.
        segments: which tokens belong to one document.
        state: the memory before the first token, which begins a chunk.
        chunk_len: C.
    """
    slots, short_term, time = state.long_k.shape[2], segments.short.shape[1], q.shape[2]

    def after_near(before, new):  # the first S near tokens of the state, then the sequence
        return jnp.concatenate([before[:, :, :short_term], new], axis=2)

    near = Tokens(
        k=after_near(state.near_k, k),
        v=after_near(state.near_v, v),
        s=after_near(state.near_s, lax.stop_gradient(s)),
        segment=jnp.concatenate([segments.short, segments.tokens], axis=1),
    )
    long = Tokens(state.long_k, state.long_v, state.long_s, jnp.zeros_like(near.segment[:, :slots]))
    q_chunks = _chunks(q, chunk_len, axis=2)
    segment = _chunks(segments.tokens, chunk_len, axis=1)

    logits, values = _short_term(q_chunks, segment, near)
    window_logsumexp = jax.nn.logsumexp(lax.stop_gradient(logits), axis=-1)
    if slots:
        long_logits, long_values, long = _long_term(q_chunks, segment, near, long, short_term)
        logits = jnp.concatenate([long_logits, logits], axis=-1)
        values = jnp.concatenate([long_values, values], axis=3)
    return Read(
        output=attend(logits, values).reshape(q.shape),
        window_logsumexp=window_logsumexp.reshape(s.shape),
        state=MemoryState(
            *followed_by_room(*(x[:, :, time:] for x in near[:3]), chunk_len),
            *long[:3],
        ),
    )


def _short_term(q, segment, near: Tokens):
    """Logits and values of the S tokens before each chunk and of the chunk so far.

    Positions count from the first of these tokens.
    """
    chunk_len, short_term = q.shape[3], near.k.shape[2] - q.shape[2] * q.shape[3]
    positions = np.arange(short_term + chunk_len)
    k = rotate(_windows(near.k, chunk_len, short_term, axis=2), positions)
    same = segment[..., :, None] == _windows(near.segment, chunk_len, short_term, 1)[..., None, :]
    causal = positions <= positions[short_term:, None]
    logits = similarity(rotate(q, positions[short_term:]), k)
    logits = jnp.where((same & causal)[:, None], logits, -jnp.inf)
    return logits, _windows(near.v, chunk_len, short_term, axis=2)


def _long_term(q, segment, near: Tokens, long: Tokens, short_term: int):
    """Logits and values of the bank that each chunk reads, and the bank after the last chunk."""
    batch, heads, num_chunks, chunk_len, head_dim = q.shape
    slots = long.k.shape[2]
    last_segment = segment[:, :, -1]  # of each chunk
    pool = Tokens(
        k=jnp.concatenate([long.k, near.k], axis=2),
        v=jnp.concatenate([long.v, near.v], axis=2),
        s=jnp.concatenate([long.s, near.s], axis=2),
        segment=jnp.concatenate([long.segment, near.segment], axis=1),
    )
    index, bank_s = select_salient(pool.s, pool.segment, last_segment, chunk_len, slots)
    index = jnp.moveaxis(index, 0, 2).reshape(batch, heads, -1, 1)

    def gather(x):  # [.., P, K] -> [.., n + 1, M, K]
        x = jnp.take_along_axis(x, index, axis=2)
        return x.reshape(batch, heads, num_chunks + 1, slots, head_dim)

    bank_k, bank_v, bank_s = gather(pool.k), gather(pool.v), jnp.moveaxis(bank_s, 0, 2)
    logits = similarity(rotate(q, [short_term + chunk_len]), bank_k[:, :, :-1])
    logits += bank_bias(bank_s[:, :, :-1])[..., None, :]
    bank_segment = jnp.pad(last_segment[:, :-1], ((0, 0), (1, 0)))
    readable = segment == bank_segment[..., None]
    logits = jnp.where(readable[:, None, :, :, None], logits, -jnp.inf)
    after = Tokens(bank_k[:, :, -1], bank_v[:, :, -1], bank_s[:, :, -1], last_segment[:, -1:])
    return logits, bank_v[:, :, :-1], after


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
