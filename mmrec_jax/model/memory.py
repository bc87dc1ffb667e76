"""Short-term and long-term memory of a layer, and the attention that reads both.

Time is cut into chunks of C tokens. A query of chunk c sees the S tokens before the chunk and those
of the chunk up to itself (short-term, rotary positions), and the bank: per head the M most salient
tokens among all older ones (long-term, no positions). When a chunk is complete, the C tokens that
leave short-term memory are offered to the bank (consolidation).

Over a whole sequence the bank is never built token by token: a scan over chunks selects *indices*
by top-k over M + C saliencies, then keys and values are gathered. Cost and memory grow as
T (S + C + M).

Letters in shapes: B batch, T time, H heads, K head width, S, C, M as above, n = T / C chunks, and
P = M + S + T, the pool of tokens a sequence can read: the bank and short-term memory that it
starts with, then itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.model.linear import mixtures, similarities

ROPE_BASE = 10_000.0


class MemoryState(NamedTuple):
    """A layer's short- and long-term memory between two chunks. Empty slots have saliency -inf."""

    short_k: Float[Array, "batch heads S K"]
    short_v: Float[Array, "batch heads S K"]
    short_s: Float[Array, "batch heads S"]
    long_k: Float[Array, "batch heads M K"]
    long_v: Float[Array, "batch heads M K"]
    long_s: Float[Array, "batch heads M"]


class Segments(NamedTuple):
    """Which tokens belong together. Numbers count documents from the one the state ended in, 0."""

    start: Bool[Array, "batch T"]  # true where a document starts
    tokens: Int[Array, "batch T"]
    short: Int[Array, "batch S"]  # of the tokens in short-term memory; -1 for an earlier document


class Read(NamedTuple):
    """What a layer reads from its memories, and what the saliency loss needs of it."""

    output: Float[Array, "batch heads T K"]
    window_logsumexp: Float[Array, "batch heads T"]  # of the logits over short-term memory
    state: MemoryState


def init_memory(
    batch: int,
    heads: int,
    head_dim: int,
    short_term: int,
    long_term: int,
    dtype: DTypeLike,
    saliency_dtype: DTypeLike,
) -> MemoryState:
    """An empty memory with keys and values of `dtype`."""
    short = jnp.zeros((batch, heads, short_term, head_dim), dtype)
    long = jnp.zeros((batch, heads, long_term, head_dim), dtype)
    return MemoryState(
        short_k=short,
        short_v=short,
        short_s=jnp.full(short.shape[:-1], -jnp.inf, saliency_dtype),
        long_k=long,
        long_v=long,
        long_s=jnp.full(long.shape[:-1], -jnp.inf, saliency_dtype),
    )


def shift_keys(
    k: Float[Array, "batch heads T K"],
    last_k: Float[Array, "batch heads K"],
    start: Bool[Array, "batch T"],
) -> Float[Array, "batch heads T K"]:
    """In heads 0, 2, ... the key of a token becomes that of the token before it in its document.

    Such a head finds what came *after* an earlier occurrence of what it looks for. The first token
    of a document gets a zero key.
    """
    before = jnp.concatenate([last_k[:, :, None], k[:, :, :-1]], axis=2)
    before = jnp.where(start[:, None, :, None], 0, before)
    even = (jnp.arange(k.shape[1]) % 2 == 0)[:, None, None]
    return jnp.where(even, before, k)


def rotate(x: Float[Array, "*batch T K"], first: int) -> Float[Array, "*batch T K"]:
    """Rotary positions (Su et al., 2021): channels j, j + K/2 turn by position * base^(-2j/K).

    Args:
        x: queries or keys.
        first: position of the first of them. Positions are constants, so their sines are too.
    """
    half = x.shape[-1] // 2
    positions = first + np.arange(x.shape[-2])
    angles = positions[:, None] * ROPE_BASE ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    # A roll and two products: halves joined together were several times slower on a CPU.
    same = jnp.asarray(np.concatenate([cos, cos], axis=-1), x.dtype)
    other = jnp.asarray(np.concatenate([-sin, sin], axis=-1), x.dtype)
    return x * same + jnp.roll(x, half, axis=-1) * other


def select_salient(
    s: Float[Array, "batch heads P"],
    segment: Int[Array, "batch P"],
    chunk_segment: Int[Array, "batch n"],
    chunk_len: int,
    slots: int,
) -> tuple[Int[Array, "n_plus_1 batch heads M"], Float[Array, "n_plus_1 batch heads M"]]:
    """Indices into the pool of the M most salient tokens that each chunk can read.

    Tokens of a document that has ended are dropped: nothing can read them again, and a new
    document must not depend on them. Of equal saliencies the newer token wins: candidates are
    ordered newest first, and top-k prefers the earlier candidate.

    Args:
        s: saliencies of the pool.
        segment: documents of the pool's tokens.
        chunk_segment: the document of each chunk's last token.
        chunk_len: C.
        slots: M.

    Returns:
        For each chunk, and for what follows the last one: indices into the pool, and saliencies
        (-inf where a slot is empty).
    """
    batch, heads, _ = s.shape
    num_chunks = chunk_segment.shape[1]

    def offered(x):  # the c-th chunk of the pool behind the bank leaves when chunk c is complete
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
        saliency, chosen = lax.top_k(jnp.concatenate([new_s, saliency], axis=-1), slots)
        index = jnp.take_along_axis(candidates, chosen, axis=-1)
        return (index, saliency, current), (index, saliency)

    index = jnp.broadcast_to(jnp.arange(slots), (batch, heads, slots))
    first = (index, s[..., :slots], jnp.zeros(batch, segment.dtype))
    pool_index = jnp.arange(s.shape[-1])
    xs = (offered(pool_index), offered(s), offered(segment), chunk_segment.T)
    _, (later_index, later_s) = lax.scan(consolidate, first, xs)
    return (
        jnp.concatenate([first[0][None], later_index]),
        jnp.concatenate([first[1][None], later_s]),
    )


def read_memories(
    q: Float[Array, "batch heads T K"],
    k: Float[Array, "batch heads T K"],
    v: Float[Array, "batch heads T K"],
    s: Float[Array, "batch heads T"],
    segments: Segments,
    state: MemoryState,
    chunk_len: int,
) -> Read:
    """Attention of every token over its short-term and long-term memory, for a whole sequence.

    Args:
        q, k, v: queries, keys (shifted where they are to be) and values. T is a multiple of C.
        s: saliencies, float32; no gradient flows through them here.
        segments: which tokens belong to one document.
        state: the memory before the first token.
        chunk_len: C.

    Returns:
        The values read, the log-sum-exp of the logits over short-term memory, and the memory after
        the last token.
    """
    batch, heads, time, head_dim = q.shape
    slots, short_term = state.long_k.shape[2], state.short_k.shape[2]
    num_chunks = time // chunk_len
    scale = head_dim**-0.5
    s = lax.stop_gradient(s)

    def chunks(x, axis):  # [.., m * C, ..] -> [.., m, C, ..]
        return x.reshape(*x.shape[:axis], -1, chunk_len, *x.shape[axis + 1 :])

    def windows(x, axis):  # the S tokens before each chunk and its own: [.., n, S + C, ..]
        x = chunks(x, axis)
        parts = [
            lax.slice_in_dim(x, i, i + num_chunks, axis=axis)
            for i in range(x.shape[axis] - num_chunks + 1)
        ]
        return jnp.concatenate(parts, axis=axis + 1)

    # Short-term memory. Positions are relative to the start of the window.
    near_k, near_v = jnp.concatenate([state.short_k, k], 2), jnp.concatenate([state.short_v, v], 2)
    near_segment = jnp.concatenate([segments.short, segments.tokens], axis=1)
    q_chunks = chunks(q, 2)
    positions = jnp.arange(short_term + chunk_len)
    logits = scale * similarities(rotate(q_chunks, short_term), rotate(windows(near_k, 2), 0))
    same = chunks(segments.tokens, 1)[..., :, None] == windows(near_segment, 1)[..., None, :]
    causal = positions[None, :] <= positions[short_term:, None]
    logits = jnp.where((same & causal)[:, None], logits, -jnp.inf)
    window_logsumexp = jax.nn.logsumexp(lax.stop_gradient(logits), axis=-1)
    values = windows(near_v, 2)

    # Long-term memory.
    long_k, long_v, long_s = state.long_k, state.long_v, state.long_s
    near_s = jnp.concatenate([state.short_s, s], axis=-1)
    if slots:
        chunk_segment = segments.tokens[:, chunk_len - 1 :: chunk_len]
        pool_segment = jnp.pad(near_segment, ((0, 0), (slots, 0)))
        index, bank_s = select_salient(
            jnp.concatenate([long_s, near_s], -1), pool_segment, chunk_segment, chunk_len, slots
        )
        index = jnp.moveaxis(index, 0, 2).reshape(batch, heads, -1, 1)

        def gather(before, now):
            pool = jnp.concatenate([before, now], axis=2)
            bank = jnp.take_along_axis(pool, index, axis=2)
            return bank.reshape(batch, heads, num_chunks + 1, slots, head_dim)

        bank_k, bank_v = gather(long_k, near_k), gather(long_v, near_v)
        bank_segment = jnp.pad(chunk_segment[:, :-1], ((0, 0), (1, 0)))
        readable = (chunks(segments.tokens, 1) == bank_segment[..., None])[:, None, :, :, None]
        filled = jnp.moveaxis(bank_s[:-1] > -jnp.inf, 0, 2)[..., None, :]
        bank_logits = scale * similarities(q_chunks, bank_k[:, :, :-1])
        bank_logits = jnp.where(readable & filled, bank_logits, -jnp.inf)
        logits = jnp.concatenate([bank_logits, logits], axis=-1)
        values = jnp.concatenate([bank_v[:, :, :-1], values], axis=3)
        long_k, long_v, long_s = bank_k[:, :, -1], bank_v[:, :, -1], bank_s[-1]

    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    output = mixtures(weights, values)
    return Read(
        output=output.reshape(q.shape),
        window_logsumexp=window_logsumexp.reshape(q.shape[:-1]),
        state=MemoryState(
            short_k=near_k[:, :, time:],
            short_v=near_v[:, :, time:],
            short_s=near_s[:, :, time:],
            long_k=long_k,
            long_v=long_v,
            long_s=long_s,
        ),
    )
