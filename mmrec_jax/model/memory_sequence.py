"""Memory for a whole sequence that begins at a chunk: the same as memory.py token by token.

The bank is never built token by token. A scan over chunks selects *indices* by top-k over M + C
saliencies, then keys and values are gathered. Cost and memory grow as T (S + C + M).

Letters in shapes: as in memory.py; n = T / C chunks, and P = M + S + T, the pool of tokens that a
sequence can read: the bank and short-term memory that it starts with, then itself.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mmrec_jax.model.linear import attend, similarities
from mmrec_jax.model.memory import (
    MemoryState,
    Read,
    Segments,
    bank_bias,
    followed_by_room,
    keep_most_salient,
    rotate,
    rotate_by,
)


def select_salient(
    s: Float[Array, "batch heads P"],
    segment: Int[Array, "batch P"],
    chunk_segment: Int[Array, "batch n"],
    chunk_len: int,
    slots: int,
) -> tuple[Int[Array, "n_plus_1 batch heads M"], Float[Array, "n_plus_1 batch heads M"]]:
    """Indices into the pool of the M most salient tokens that each chunk can read.

    Tokens of a document that has ended are dropped: nothing can read them again, and a new
    document must not depend on them.

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
        saliency, chosen = keep_most_salient(new_s, saliency)
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
        state: the memory before the first token, which begins a chunk.
        chunk_len: C.

    Returns:
        The values read, the log-sum-exp of the logits over short-term memory, and the memory after
        the last token.
    """
    batch, heads, time, head_dim = q.shape
    slots, short_term = state.long_k.shape[2], state.near_k.shape[2] - chunk_len
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
    near_k = jnp.concatenate([state.near_k[:, :, :short_term], k], axis=2)
    near_v = jnp.concatenate([state.near_v[:, :, :short_term], v], axis=2)
    near_s = jnp.concatenate([state.near_s[:, :, :short_term], s], axis=2)
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
    if slots:
        chunk_segment = segments.tokens[:, chunk_len - 1 :: chunk_len]
        pool_segment = jnp.pad(near_segment, ((0, 0), (slots, 0)))
        index, bank_s = select_salient(
            jnp.concatenate([long_s, near_s], -1), pool_segment, chunk_segment, chunk_len, slots
        )
        index = jnp.moveaxis(index, 0, 2).reshape(batch, heads, -1, 1)

        pool = jnp.concatenate(  # keys and values side by side: gathered at once
            [
                jnp.concatenate([long_k, long_v], axis=-1),
                jnp.concatenate([near_k, near_v], axis=-1),
            ],
            axis=2,
        )
        bank = jnp.take_along_axis(pool, index, axis=2)
        bank = bank.reshape(batch, heads, num_chunks + 1, slots, 2 * head_dim)
        bank_k, bank_v = jnp.split(bank, 2, axis=-1)
        bank_segment = jnp.pad(chunk_segment[:, :-1], ((0, 0), (1, 0)))
        readable = (chunks(segments.tokens, 1) == bank_segment[..., None])[:, None, :, :, None]
        far_q = rotate_by(q_chunks, short_term + chunk_len)
        bank_logits = scale * similarities(far_q, bank_k[:, :, :-1])
        bank_logits += bank_bias(jnp.moveaxis(bank_s[:-1], 0, 2))[..., None, :]
        bank_logits = jnp.where(readable, bank_logits, -jnp.inf)
        logits = jnp.concatenate([bank_logits, logits], axis=-1)
        values = jnp.concatenate([bank_v[:, :, :-1], values], axis=3)
        long_k, long_v, long_s = bank_k[:, :, -1], bank_v[:, :, -1], bank_s[-1]

    return Read(
        output=attend(logits, values).reshape(q.shape),
        window_logsumexp=window_logsumexp.reshape(q.shape[:-1]),
        state=MemoryState(
            near_k=followed_by_room(near_k[:, :, time:], chunk_len, 0),
            near_v=followed_by_room(near_v[:, :, time:], chunk_len, 0),
            near_s=followed_by_room(near_s[:, :, time:], chunk_len, -jnp.inf),
            long_k=long_k,
            long_v=long_v,
            long_s=long_s,
        ),
    )
