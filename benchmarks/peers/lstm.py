"""An LSTM (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000), in residual layers.

    [i, f, o, g] = W_x RMSNorm(x_t) + b + W_h h_{t-1}
    c_t = sigma(f) c_{t-1} + sigma(i) tanh(g)
    h_t = sigma(o) tanh(c_t);   x = x + dropout(h)

As for MM-Rec's recurrence, the gradient of the scan is written by hand: its reverse scan carries
only dL/dh and dL/dc, and the gradient of W_h is one matmul after it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from benchmarks.peers.stack import Maps, Place, Stack
from mmrec_jax.config import ModelConfig
from mmrec_jax.model.block import param_dtype


class Memory(NamedTuple):
    """The state of a layer, both [B, D]."""

    h: Array
    c: Array


def cell(a, c):
    """h_t and c_t from the logits of the gates [.., 4 D] and c_{t-1}."""
    i, f, o, g = jnp.split(a, 4, axis=-1)
    c = nnx.sigmoid(f) * c + nnx.sigmoid(i) * jnp.tanh(g)
    return Memory(nnx.sigmoid(o) * jnp.tanh(c), c)


def _forget(memory: Memory, start) -> Memory:
    return Memory(*(jnp.where(start[:, None], 0.0, x) for x in memory))


def _scan(a, W_h, first: Memory, start):
    def step(memory, x):
        a, start = x
        memory = _forget(memory, start)
        a = a + memory.h @ W_h
        after = cell(a, memory.c)
        return after, (a, memory, after)

    return lax.scan(step, first, (a, start))[1]


@jax.custom_vjp
def recurrence(a, W_h, first: Memory, start) -> Memory:
    """h_t and c_t of all steps, [T, B, D].

    `a` is W_x u + b, [T, B, 4 D]; `start` [T, B] is true where the memory is emptied first.
    """
    return _scan(a, W_h, first, start)[2]


def _forward(a, W_h, first, start):
    logits, before, after = _scan(a, W_h, first, start)
    return after, (logits, before, W_h, start)


def _backward(residuals, grads: Memory):
    logits, before, W_h, start = residuals

    def step(carry, x):
        grads, logits, c, start = x
        grads = Memory(carry.h + grads.h, carry.c + grads.c)
        da, dc = jax.vjp(cell, logits, c)[1](grads)
        return _forget(Memory(da @ W_h.T, dc), start), da

    zero = jax.tree.map(lambda x: jnp.zeros_like(x[0]), grads)
    first, da = lax.scan(step, zero, (grads, logits, before.c, start), reverse=True)
    return da, jnp.einsum("tbd,tbe->de", before.h, da), first, None


recurrence.defvjp(_forward, _backward)


class LSTM(nnx.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.dim, self.wide = config.dim, param_dtype(config)
        sizes, orthogonal = 4 * [self.dim], nnx.initializers.orthogonal()
        self.W_x = Maps(config, self.dim, sizes, rngs)
        self.W_h = Maps(config, self.dim, sizes, rngs, kernel_init=orthogonal)
        i, f, o, g = jnp.zeros((4, self.dim), self.wide)
        self.b = nnx.Param(jnp.concatenate([i, f + 1, o, g]))  # f: at first, nothing is forgotten

    def init_state(self, batch: int) -> Memory:
        return Memory(*(jnp.zeros((batch, self.dim), self.wide) for _ in range(2)))

    def __call__(self, x, place: Place, state: Memory):
        a = jnp.concatenate(self.W_x(x), axis=-1).astype(self.wide) + self.b[...]
        h, c = recurrence(jnp.swapaxes(a, 0, 1), self.W_h.kernel, state, place.start.T)
        return jnp.swapaxes(h, 0, 1).astype(x.dtype), Memory(h[-1], c[-1])


def make(config: ModelConfig, hidden: int, rngs: nnx.Rngs) -> Stack:
    """As many layers as MM-Rec has; there are no MLPs, so `hidden` is not used."""
    del hidden
    return Stack(config, rngs, [LSTM(config, rngs) for _ in range(config.num_layers)])
