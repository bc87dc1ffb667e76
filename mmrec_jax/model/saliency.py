"""The loss that teaches saliency to predict use.

sigma(s_j) is to predict the use u_j: the largest attention probability that a later query of the
sequence would give token j after it has left short-term memory, if nothing had ever been evicted.
Thus a token that was evicted and then needed pulls its own saliency up.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.memory import rotate

GROUP = 64  # queries examined together, which bounds memory to B H GROUP T floats


def saliency_loss(
    s: Float[Array, "batch heads T"],
    used: Float[Array, "batch heads T"],
    seen: Bool[Array, "batch T"],
) -> Float[Array, ""]:
    """Mean binary cross-entropy between sigma(s) and use, over the tokens that could be used."""
    losses = optax.sigmoid_binary_cross_entropy(s, used)
    count = s.shape[1] * jnp.sum(seen)
    return jnp.sum(jnp.where(seen[:, None], losses, 0)) / jnp.maximum(count, 1)


def use_without_eviction(
    config: ModelConfig,
    q: Float[Array, "batch heads T K"],
    k: Float[Array, "batch heads T K"],
    window_logsumexp: Float[Array, "batch heads T"],
    segment: Int[Array, "batch T"],
    key: PRNGKeyArray,
) -> tuple[Float[Array, "batch heads T"], Bool[Array, "batch T"]]:
    """The use u of every token, and whether any examined query could have used it. No gradient.

    Args:
        config: at most `saliency_queries` queries are examined, evenly spaced.
        q, k: queries and keys without rotary positions; read as if S + C tokens away (memory.py).
        window_logsumexp: log-sum-exp of each query's logits over its short-term memory.
        segment: the document of each token.
        key: draws the first query that is examined, so that over time all are.

    Returns:
        u in [0, 1], and a mask: false for tokens that no examined query could have used.
    """
    chunk_len, short_term = config.chunk_len, config.short_term
    q, k, window_logsumexp = lax.stop_gradient((q, k, window_logsumexp))
    q = rotate(q, [short_term + chunk_len])
    batch, heads, time, head_dim = q.shape
    stride = -(-time // config.saliency_queries)
    offset = jax.random.randint(key, (), 0, stride)
    count = time // stride
    group = min(GROUP, count)
    # The last group may reach past the end; it repeats the last query.
    positions = jnp.minimum(offset + stride * jnp.arange(-(-count // group) * group), time - 1)
    token = jnp.arange(time)

    def look(carry, positions):
        used, seen = carry
        logits = jnp.einsum(
            "bhik,bhjk->bhij", q[:, :, positions], k, preferred_element_type=used.dtype
        )
        window_start = positions // chunk_len * chunk_len - short_term
        older = (token < window_start[:, None]) & (segment[:, positions, None] == segment[:, None])
        logits = jnp.where(older[:, None], head_dim**-0.5 * logits, -jnp.inf)
        normalizer = jnp.logaddexp(
            window_logsumexp[:, :, positions], jax.nn.logsumexp(logits, axis=-1)
        )
        probability = jnp.exp(logits - normalizer[..., None])
        return (jnp.maximum(used, probability.max(axis=2)), seen | older.any(axis=1)), None

    first = jnp.zeros((batch, heads, time), window_logsumexp.dtype), jnp.zeros((batch, time), bool)
    (used, seen), _ = lax.scan(look, first, positions.reshape(-1, group))
    return used, seen
