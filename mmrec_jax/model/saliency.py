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
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.bank import Saliency, forecast, log_age, rotate_back
from mmrec_jax.model.layout import on_own_sequences
from mmrec_jax.model.memory import Segments
from mmrec_jax.model.ops import similarity
from mmrec_jax.model.rotary import rotate


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
    loss, count, slopes = sums(*frozen, segments.tokens, scored)
    # A sum that is zero and has these slopes: the gradient, without another pass over the chunks.
    tangent = jax.tree.map(lambda x, at, slope: jnp.sum(slope * (x - at)), s, frozen[0], slopes)
    return (loss.sum() + tangent.s + tangent.fading) / jnp.maximum(count.sum(), 1)


class _Examined(NamedTuple):
    """Which chunks, and which queries of each."""

    chunks: Int[Array, "chunks"]
    queries: Int[Array, "queries"]


def _sums(config: ModelConfig, examined: _Examined, s, q, k, window_logsumexp, segment, scored):
    """Losses and counts of each sequence, and the slopes d loss / d saliency of each token."""
    chunk_len, short_term = config.chunk_len, config.short_term
    heads, time = q.shape[1:3]
    q = rotate(q, short_term + np.arange(time) % chunk_len)
    token = jnp.arange(time)

    def look(sums, chunk):
        loss, count, slopes = sums
        begin = chunk * chunk_len
        positions = begin + examined.queries
        distance = begin - token
        logits = similarity(
            q[:, :, positions], rotate_back(k, jnp.maximum(distance, 0), config)
        ).astype(window_logsumexp.dtype)
        older = (distance > short_term) & (segment[:, positions, None] == segment[:, None])
        logits = jnp.where(older[:, None], logits, -jnp.inf)
        normalizer = jnp.logaddexp(
            window_logsumexp[:, :, positions], jax.nn.logsumexp(logits, axis=-1)
        )
        counting = scored[:, None, positions, None]
        use = jnp.where(counting, jnp.exp(logits - normalizer[..., None]), 0).max(axis=2)
        expected = forecast(s, distance, config)
        seen = older.any(axis=1)[:, None]
        slope = jnp.where(seen, jax.nn.sigmoid(expected) - use, 0)  # d loss / d forecast
        losses = jnp.where(seen, optax.sigmoid_binary_cross_entropy(expected, use), 0)
        slopes = Saliency(
            slopes.s + slope, slopes.fading - slope * log_age(distance, config, slope.dtype)
        )
        return (
            loss + jnp.sum(losses, axis=(1, 2)),
            count + heads * jnp.sum(seen, axis=(1, 2), dtype=count.dtype),
            slopes,
        ), None

    zeros = jnp.zeros(len(q), window_logsumexp.dtype)
    first = zeros, jnp.zeros(len(q), jnp.int32), jax.tree.map(jnp.zeros_like, s)
    return lax.scan(look, first, examined.chunks)[0]
