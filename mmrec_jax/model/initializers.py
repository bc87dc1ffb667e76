"""What the parameters of a block are before training."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.bank import INITIAL_SALIENCY

# s and lambda are this times sqrt(K) times the mean of their channels of p. These channels learn
# alike, so the mean changes as fast as each of them, and with it what the bank holds. Other values
# were measured in docs/memory.md.
SALIENCY_GAIN = 1 / 16
INITIAL_FADING = -1.0  # the logit of lambda, log(1 + exp(-1)) = 0.3


def compiled(initializer):
    """An initializer as a program of its own, which parameters of the same shape share.

    One program for all parameters would take longer to compile.
    """
    return jax.jit(initializer, static_argnums=(1, 2))


LECUN_NORMAL = compiled(nnx.initializers.lecun_normal())
SMALL = compiled(nnx.initializers.normal(0.02))
SATURATED = compiled(nnx.initializers.constant(4.0))


@compiled
def spread_decays(key, shape, dtype):
    """Biases for which sigma increases evenly from 0.5 to 0.998 over the channels."""
    decay = jnp.linspace(0.5, 0.998, shape[0], dtype=dtype)
    return jnp.log(decay / (1 - decay))


@functools.cache
def initial_saliency(config: ModelConfig):
    """Initializer of the biases of W_fused: zero except those of p."""

    def init(key, shape, dtype):
        p = jnp.repeat(jnp.array([INITIAL_SALIENCY, INITIAL_FADING], dtype), config.head_dim // 2)
        p = jnp.tile(p / (SALIENCY_GAIN * config.head_dim**0.5), config.num_heads)
        return jnp.zeros(shape, dtype).at[4 * config.dim : 5 * config.dim].set(p)

    return compiled(init)


@functools.cache
def matching_queries(config: ModelConfig):
    """Initializer of W_fused: in heads with shifted keys, q starts equal to k.

    So equal tokens match from the first step on, and copying what came after an earlier occurrence
    is learned hundreds of steps sooner, whatever the seed.
    """

    def init(key, shape, dtype):
        maps = nnx.initializers.lecun_normal()(key, shape, dtype)
        if not config.shifted_keys:
            return maps
        by_head = maps.reshape(shape[0], 6, config.num_heads, config.head_dim)
        q, k = 0, 1
        return by_head.at[:, q, ::2].set(by_head[:, k, ::2]).reshape(shape)

    return compiled(init)
