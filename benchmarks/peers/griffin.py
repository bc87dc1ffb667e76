"""Griffin (De et al., 2024): two recurrent layers, then one of local attention, and so on.

A recurrent layer, with u = RMSNorm(x):

    x = x + W_o (gelu(W_y u) * RG-LRU(conv(W_u u)))
    r_t = sigma(W_r z_t + b_r);   i_t = sigma(W_i z_t + b_i)      (block-diagonal, one per head)
    a_t = exp(-8 softplus(Lambda) r_t)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t * z_t)               (RG-LRU of z)

Local attention sees W tokens and has one head of keys and values; every layer has a GeGLU. As in
the authors' code, exp(-softplus(Lambda)) begins between 0.9 and 0.999, and the first token of a
document enters without the factor sqrt(1 - a^2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from benchmarks.peers.stack import Convolution, GatedMLP, Maps, Place, Stack, linear
from benchmarks.peers.transformer import Attention
from mmrec_jax.config import ModelConfig
from mmrec_jax.model.block import param_dtype

LEAST, MOST = 0.9, 0.999  # exp(-softplus(Lambda)) at the beginning
LARGEST_SLOPE = 1000.0  # of the square root in the gradient


class Memory(NamedTuple):
    """The state of a recurrent layer."""

    h: Array  # [B, D], float32 or wider
    inputs: Array  # of the convolution


def linear_scan(a, x, h0):
    """h_t = a_t h_{t-1} + x_t over axis 1, with h_{-1} = h0.

    On two CPU cores, the gradient of an associative scan takes two to four times as long.
    """

    def step(h, ax):
        h = ax[0] * h + ax[1]
        return h, h

    _, h = lax.scan(step, h0, (jnp.swapaxes(a, 0, 1), jnp.swapaxes(x, 0, 1)))
    return jnp.swapaxes(h, 0, 1)


def _initial_lambda(key, width, dtype):
    square = jax.random.uniform(key, (width,), dtype, LEAST**2, MOST**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(square)))  # the inverse of softplus


class RecurrentBlock(nnx.Module):
    """The RG-LRU with its gate and convolution."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config, wide = config, param_dtype(config)
        dim, heads, width = config.dim, config.num_heads, config.head_dim
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
        self.W_yu = Maps(config, dim, [dim, dim], rngs)
        self.convolution = Convolution(config, dim, rngs, scale=0.01)
        self.gates = nnx.Param(init(rngs.params(), (heads, width, 2 * width), wide))
        self.gate_bias = nnx.Param(jnp.zeros(2 * dim, wide))
        self.Lambda = nnx.Param(_initial_lambda(rngs.params(), dim, wide))
        self.W_o = linear(config, rngs, ends_branch=True)(dim, dim)

    def init_state(self, batch: int) -> Memory:
        h = jnp.zeros((batch, self.config.dim), param_dtype(self.config))
        return Memory(h, self.convolution.init_state(batch))

    def __call__(self, x, place: Place, state: Memory):
        y, z = self.W_yu(x)
        z, inputs = self.convolution(z, place, state.inputs)
        h = self.rg_lru(z.astype(state.h.dtype), place.start[..., None], state.h)
        return self.W_o(nnx.gelu(y) * h.astype(x.dtype)), Memory(h[:, -1], inputs)

    def rg_lru(self, z, start, h0):
        """h of every step, [B, T, D]."""
        heads = z.reshape(*z.shape[:2], self.config.num_heads, -1)
        logits = jnp.einsum("bthi,hij->bthj", heads, self.gates[...])
        r, i = (x.reshape(z.shape) for x in jnp.split(logits, 2, axis=-1))
        b_r, b_i = jnp.split(self.gate_bias[...], 2)
        log_a = -8 * nnx.softplus(self.Lambda[...]) * nnx.sigmoid(r + b_r)
        # 1 - a^2 without cancellation, and so far from 0 that the slope of its root is bounded.
        kept = jnp.maximum(-jnp.expm1(2 * log_a), 1 / (4 * LARGEST_SLOPE**2))
        inputs = jnp.where(start, 1.0, jnp.sqrt(kept)) * nnx.sigmoid(i + b_i) * z
        return linear_scan(jnp.where(start, 0.0, jnp.exp(log_a)), inputs, h0)


def default_hidden(dim: int) -> int:
    """Width of the GeGLU."""
    return 3 * dim


def make(config: ModelConfig, hidden: int, rngs: nnx.Rngs, window: int) -> Stack:
    """Griffin with local attention over `window` tokens in layers 3, 6, ..., or in 2 of 2."""
    layers = range(config.num_layers)
    local = {1} if len(layers) == 2 else set(layers[2::3])
    mixers = [
        Attention(config, rngs, window, 1) if index in local else RecurrentBlock(config, rngs)
        for index in layers
    ]
    return Stack(config, rngs, mixers, [GatedMLP(config, hidden, nnx.gelu, rngs) for _ in layers])
