"""The loss that teaches saliency to forecast use.

The use u_jc of token j in chunk c is the largest attention probability that a query of the chunk
would give it, after it has left short-term memory, if nothing had ever been evicted. Only queries
whose prediction counts in the loss count: what the others read makes no difference. The forecast
for the token's age in that chunk is to predict it. Thus a token that was evicted and then needed
pulls its own saliency up, and one that is needed at any age learns not to fade.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.bank import Saliency, forecast, log_age
from mmrec_jax.model.layout import on_own_sequences
from mmrec_jax.model.memory import FOUND, Segments
from mmrec_jax.model.ops import similarity
from mmrec_jax.model.rotary import rotate

# As many queries, of some chunks, are examined at once: fewer take longer, more need more memory.
AT_ONCE = 64


def saliency_loss(
    config: ModelConfig,
    s: Saliency,
    q: Float[Array, "batch heads T K"],
    k: Float[Array, "batch heads T K"],
    window_logsumexp: Float[Array, "batch heads T"],
    segments: Segments,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Mean binary cross-entropy between forecast and use, over all tokens and chunks.

    A pair counts if some examined query of the chunk could have used the token. Gradients flow into
    the saliencies alone.

    Args:
        config: at most `saliency_queries` queries are examined, as many in each chunk, or one in
            some of the chunks.
        s: saliencies [batch, heads, T].
        q, k: queries and keys without rotary positions.
        window_logsumexp: log-sum-exp of each query's logits over its short-term memory.
        segments: the document of each token, and whose predictions count.
        key: draws the first query that is examined, so that over time all are.
    """
    num_chunks = q.shape[2] // config.chunk_len
    chunk_stride = -(-num_chunks // config.saliency_queries)
    stride = -(-config.chunk_len * num_chunks // (config.saliency_queries * chunk_stride))
    random_chunk, random_query = jax.random.split(key)
    first_chunk = jax.random.randint(random_chunk, (), 0, chunk_stride)
    first_query = jax.random.randint(random_query, (), 0, stride)
    examined = _Examined(
        chunks=first_chunk + chunk_stride * jnp.arange(num_chunks // chunk_stride),
        queries=first_query + stride * np.arange(config.chunk_len // stride),
    )
    scored = segments.scored
    scored = jnp.ones(segments.tokens.shape, bool) if scored is None else scored
    frozen = lax.stop_gradient((s, q, k, window_logsumexp))
    sums = on_own_sequences(functools.partial(_sums, config, examined))
    found = sums(*frozen, segments.tokens, scored)
    loss, count, slopes = checkpoint_name(found, FOUND)
    # A sum that is zero and has these slopes: the gradient, without another pass over the chunks.
    tangent = jax.tree.map(lambda x, at, slope: jnp.sum(slope * (x - at)), s, frozen[0], slopes)
    return (loss.sum() + tangent.s + tangent.fading) / jnp.maximum(count.sum(), 1)


class _Examined(NamedTuple):
    """Which chunks, and which queries of each."""

    chunks: Int[Array, "chunks"]
    queries: Int[Array, "queries"]


def _sums(config: ModelConfig, examined: _Examined, s, q, k, window_logsumexp, segment, scored):
    """Losses and counts of each sequence, and the slopes d loss / d saliency of each token."""
    chunk_len, reach = config.chunk_len, config.seen_tokens
    heads, time = q.shape[1:3]
    token = np.arange(time)
    # As in the bank: a key is read where it stands, or `reach` before the chunk if that is nearer.
    q_near, k_near = rotate(q, token), rotate(k, token)
    q_far = rotate(q, reach + token % chunk_len)

    def look(sums, chunks):
        loss, count, slopes = sums
        begin = chunk_len * chunks
        positions = (begin[:, None] + examined.queries).reshape(-1)

        def by_chunk(x, axis):  # of all queries
            return x.reshape(*x.shape[:axis], len(chunks), -1, *x.shape[axis + 1 :])

        distance = begin[:, None] - token
        older = by_chunk(segment[:, positions, None] == segment[:, None], axis=1)
        older &= (distance > config.short_term)[:, None]
        near = by_chunk(similarity(q_near[:, :, positions], k_near), axis=2)
        far = by_chunk(similarity(q_far[:, :, positions], k), axis=2)
        logits = jnp.where(distance[:, None] <= reach, near, far).astype(window_logsumexp.dtype)
        logits = jnp.where(older[:, None], logits, -jnp.inf)
        normalizer = jnp.logaddexp(
            by_chunk(window_logsumexp[:, :, positions], axis=2), jax.nn.logsumexp(logits, axis=-1)
        )
        counting = by_chunk(scored[:, positions], axis=1)[:, None, ..., None]
        use = jnp.where(counting, jnp.exp(logits - normalizer[..., None]), 0).max(axis=3)
        of_tokens = jax.tree.map(lambda x: x[:, :, None], s)
        expected = forecast(of_tokens, distance, config)
        seen = older.any(axis=2)[:, None]
        slope = jnp.where(seen, jax.nn.sigmoid(expected) - use, 0)  # d loss / d forecast
        losses = jnp.where(seen, optax.sigmoid_binary_cross_entropy(expected, use), 0)
        fading = slope * log_age(distance, config, slope.dtype)
        slopes = Saliency(slopes.s + slope.sum(axis=2), slopes.fading - fading.sum(axis=2))
        return (
            loss + jnp.sum(losses, axis=(1, 2, 3)),
            count + heads * jnp.sum(seen, axis=(1, 2, 3), dtype=count.dtype),
            slopes,
        ), None

    zeros = jnp.zeros(len(q), window_logsumexp.dtype)
    first = zeros, jnp.zeros(len(q), jnp.int32), jax.tree.map(jnp.zeros_like, s)
    size = min(max(1, AT_ONCE // len(examined.queries)), len(examined.chunks))
    # The last group is filled up with the first chunk: no token is older.
    chunks = jnp.pad(examined.chunks, (0, -len(examined.chunks) % size)).reshape(-1, size)
    return lax.scan(look, first, chunks)[0]
