"""Gated delta net (Yang, Kautz and Hatamizadeh, 2024): a matrix memory with erasure and decay.

    [q, k, v] = silu(conv(W_qkv RMSNorm(x)));   q and k of length 1 in each head
    alpha_t = exp(-A softplus(w_a x_t + b_a));   beta_t = sigma(w_b x_t)      (one per head)
    S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T
    x = x + W_o (RMSNorm(S_t q_t) * silu(W_g u_t));   x = x + SwiGLU(RMSNorm(x))

Chosen over Mamba-2, which has the same chunked form without that inverse, because erasing
what a key held before is what makes such a memory recall, the task that MM-Rec's bank is for.

**In chunks** (the WY form): with u_t = beta_t (v_t - alpha_t S_{t-1} k_t), the recurrence is
S_t = alpha_t S_{t-1} + u_t k_t^T. In a chunk that starts from S_0, let g_t be the product of
alpha up to t, and G_ti = g_t / g_i for i <= t. Then

    S_t = g_t S_0 + sum_{i <= t} G_ti u_i k_i^T
    (I + tril(beta_t G_ti k_t . k_i, -1)) U = beta V - (beta g K) S_0^T

so that the inverse of this matrix, for all chunks at once, gives U as a linear function of S_0, and
only S_0 is computed from chunk to chunk. With chunks of one token this is the recurrence itself.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from benchmarks.peers.stack import Convolution, GatedMLP, Maps, Place, Stack, linear
from mmrec_jax.config import ModelConfig
from mmrec_jax.model.block import param_dtype

LONGEST_CHUNK = 32  # a power of 2
VALUE_WIDTH = 2  # channels of a value per channel of a key
NORM_EPS = 1e-6


class Memory(NamedTuple):
    """The state of a layer."""

    S: Array  # [B, H, V, K], float32 or wider
    inputs: Array  # of the convolution


def gated_delta_rule(q, k, v, log_alpha, beta, segment, S, chunk: int):
    """S_t q_t of every token, [B, H, T, V], and the last S.

    Args:
        q, k: [B, H, T, K]; T is a multiple of `chunk`, which is a power of 2.
        v: [B, H, T, V].
        log_alpha, beta: [B, H, T].
        segment: [B, T], the number of each token's document, which does not decrease; 0 is the one
            that S belongs to.
        S: [B, H, V, K], the memory before the first token.
    """

    def chunks(x, axis=2):
        return x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])

    q, k, v, log_alpha, beta = map(chunks, (q, k, v, log_alpha, beta))
    segment = chunks(segment, 1)[:, None]  # [B, 1, n, C]
    log_g = jnp.cumsum(log_alpha, axis=-1)
    before = jnp.pad(segment[..., :-1, -1], ((0, 0), (0, 0), (1, 0)))[..., None]
    g = jnp.where(segment == before, jnp.exp(log_g), 0)  # 0: S_0 is of an earlier document
    lower = np.tril(np.ones((chunk, chunk), bool))
    same = (segment[..., :, None] == segment[..., None, :]) & lower
    G = jnp.where(same, jnp.exp(jnp.where(same, log_g[..., :, None] - log_g[..., None, :], 0)), 0)

    overlap = jnp.tril(beta[..., None] * G * jnp.einsum("...tk,...ik->...ti", k, k), -1)
    known = beta[..., None] * jnp.concatenate([v, g[..., None] * k], axis=-1)
    # U - W S_0^T is the U of the docstring.
    U, W = jnp.split(inverse_plus_one(overlap) @ known, [v.shape[-1]], axis=-1)
    attention = G * jnp.einsum("...tk,...ik->...ti", q, k)
    to_end = G[..., -1, :, None] * k  # what is left of each key at the end of the chunk

    def step(S, x):
        U, W, attention, q, g, to_end = x
        U = U - jnp.einsum("bhtk,bhvk->bhtv", W, S)
        output = attention @ U + g[..., None] * jnp.einsum("bhtk,bhvk->bhtv", q, S)
        S = g[..., -1, None, None] * S + jnp.einsum("bhtv,bhtk->bhvk", U, to_end)
        return S, output

    xs = (jnp.moveaxis(x, 2, 0) for x in (U, W, attention, q, g, to_end))
    S, output = lax.scan(step, S, tuple(xs))
    output = jnp.moveaxis(output, 0, 2)
    return output.reshape(*output.shape[:2], -1, output.shape[-1]), S


def inverse_plus_one(A):
    """(I + A)^-1 of strictly lower triangular matrices [.., C, C]; C is a power of 2.

    The inverses of both diagonal blocks, computed together, give that of the complete matrix. On
    a CPU this takes much less time than a batch of triangular solves.
    """
    half = A.shape[-1] // 2
    if not half:
        return jnp.ones_like(A)
    blocks = jnp.stack([A[..., :half, :half], A[..., half:, half:]])
    first, second = inverse_plus_one(blocks)
    corner = -second @ A[..., half:, :half] @ first
    upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    return jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)


def _initial_step(key, shape, dtype):
    """Biases b for which softplus(b) lies between 0.001 and 0.1, evenly in its logarithm."""
    low, high = np.log(0.001), np.log(0.1)
    return jnp.log(jnp.expm1(jnp.exp(jax.random.uniform(key, shape, dtype, low, high))))


def unit(x):
    """x / |x| over the last axis."""
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + NORM_EPS)


class DeltaNet(nnx.Module):
    """One layer. W_in makes q, k, v, the output gate, and the logits of alpha and beta."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config, wide = config, param_dtype(config)
        dim, heads, values = config.dim, config.num_heads, VALUE_WIDTH * config.dim
        self.W_in = Maps(config, dim, [dim, dim, values, values, heads, heads], rngs)
        self.convolution = Convolution(config, 2 * dim + values, rngs)
        rates = jax.random.uniform(rngs.params(), (heads,), wide, 0.01, 16)
        self.log_A = nnx.Param(jnp.log(rates))
        self.b_a = nnx.Param(_initial_step(rngs.params(), (heads,), wide))
        self.scale = nnx.Param(jnp.ones(VALUE_WIDTH * config.head_dim, wide))
        self.W_o = linear(config, rngs, ends_branch=True)(values, dim)

    def init_state(self, batch: int) -> Memory:
        config = self.config
        shape = batch, config.num_heads, VALUE_WIDTH * config.head_dim, config.head_dim
        return Memory(jnp.zeros(shape, param_dtype(config)), self.convolution.init_state(batch))

    def __call__(self, x, place: Place, state: Memory):
        wide = state.S.dtype
        *qkv, gate, a, b = self.W_in(x)
        ends = np.cumsum([part.shape[-1] for part in qkv])
        qkv, inputs = self.convolution(jnp.concatenate(qkv, axis=-1), place, state.inputs)
        q, k, v = (
            jnp.moveaxis(part.reshape(*x.shape[:2], self.config.num_heads, -1), 1, 2)
            for part in jnp.split(nnx.silu(qkv).astype(wide), ends[:-1], axis=-1)
        )
        q, k = unit(q) / q.shape[-1] ** 0.5, unit(k)
        a, b = (jnp.moveaxis(logit.astype(wide), -1, 1) for logit in (a, b))
        per_head = self.b_a[...][:, None], self.log_A[...][:, None]
        log_alpha = -jnp.exp(per_head[1]) * nnx.softplus(a + per_head[0])
        chunk = math.gcd(LONGEST_CHUNK, x.shape[1])
        output, S = gated_delta_rule(
            q, k, v, log_alpha, nnx.sigmoid(b), place.segment, state.S, chunk
        )
        size = output.shape[-1] ** 0.5
        output = jnp.moveaxis(self.scale[...] * size * unit(output), 1, 2).reshape(gate.shape)
        return self.W_o(output.astype(x.dtype) * nnx.silu(gate)), Memory(S, inputs)


def default_hidden(dim: int) -> int:
    """Width of the SwiGLU: as many parameters as two matrices of D x 4 D."""
    return 8 * dim // 3


def make(config: ModelConfig, hidden: int, rngs: nnx.Rngs) -> Stack:
    """A gated delta net."""
    layers = range(config.num_layers)
    mlps = [GatedMLP(config, hidden, nnx.silu, rngs) for _ in layers]
    return Stack(config, rngs, [DeltaNet(config, rngs) for _ in layers], mlps)
