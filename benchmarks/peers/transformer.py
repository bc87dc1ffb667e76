"""Transformers: causal attention over the complete window, or over a sliding window of W tokens.

    q, k, v = W_qkv RMSNorm(x), with rotary positions (Su et al., 2021) on q and k
    x = x + W_o softmax(q k^T / sqrt(K)) v;   x = x + SwiGLU(RMSNorm(x))

`Attention` reads a sequence in chunks of C tokens, each of which sees W tokens before it, so that
the cost grows as T (W + C). Its state is the keys and values of the last W tokens. `FullAttention`
has no state between windows: it sees the window from its beginning. To generate with it, give it
slots: its state then holds that many keys and values, and a step reads all of them.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from benchmarks.peers.stack import GatedMLP, Maps, Place, Stack, linear
from mmrec_jax.config import ModelConfig
from mmrec_jax.model.ops import attend, similarity
from mmrec_jax.model.rotary import rotary, rotate, turn


class Seen(NamedTuple):
    """The last W tokens."""

    k: Array  # [B, key heads, W, K], not rotated
    v: Array
    live: Array  # [B, W], true if it belongs to the document of the last one


class Cache(NamedTuple):
    """The tokens of a document so far: those in slots, which a step reads, and those since.

    A step writes into `new` alone, because XLA's CPU compiler copies an array that the same program
    reads in a matmul and writes to. Whoever writes more than NEW tokens has to move them to slots.
    """

    old: Seen  # [B, heads, slots, K], keys rotated
    new: Seen  # [B, heads, NEW, K]
    count: Array  # [B], position of the next token; the same for all sequences


NEW = 128  # tokens of a cache outside its slots


class Attention(nnx.Module):
    """Attention over the last `window` tokens, itself included."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, window: int, key_heads: int):
        """`key_heads`: heads of keys and values; with 1, all heads of queries share them (MQA)."""
        self.config, self.window, self.key_heads = config, window, key_heads
        sizes = [heads * config.head_dim for heads in (config.num_heads, key_heads, key_heads)]
        self.W_qkv = Maps(config, config.dim, sizes, rngs)
        self.W_o = linear(config, rngs, ends_branch=True)(config.dim, config.dim)

    def init_state(self, batch: int, window: int | None = None) -> Seen:
        window = self.window if window is None else window
        shape = batch, self.key_heads, window, self.config.head_dim
        k, v = (jnp.zeros(shape, self.config.dtype) for _ in range(2))
        return Seen(k, v, jnp.zeros((batch, window), bool))

    def __call__(self, x, place: Place, state: Seen):
        q, k, v = self.project(x)
        time, window = x.shape[1], self.window
        chunk = min(self.config.chunk_len, time)
        k, v = (jnp.concatenate(pair, axis=2) for pair in ((state.k, k), (state.v, v)))
        segment = jnp.where(state.live, 0, -1)
        segment = jnp.concatenate([segment, place.segment], axis=1)
        after = Seen(
            k[:, :, -window:], v[:, :, -window:], (segment == segment[:, -1:])[:, -window:]
        )
        q = rotate(q, np.arange(window, window + time))
        k = rotate(k, np.arange(window + time))

        def chunks(x, axis):  # [.., T, ..] -> [.., T / C, C, ..]
            return x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])

        def seen(x, axis):  # [.., W + T, ..] -> [.., T / C, W + C, ..]
            starts = range(0, time, chunk)
            parts = [lax.slice_in_dim(x, at, at + window + chunk, axis=axis) for at in starts]
            return jnp.stack(parts, axis=axis)

        same = chunks(place.segment, 1)[..., :, None] == seen(segment, 1)[..., None, :]
        age = np.arange(window, window + chunk)[:, None] - np.arange(window + chunk)
        visible = same & ((age >= 0) & (age < window))
        return self.read(chunks(q, 2), seen(k, 2), seen(v, 2), visible).reshape(x.shape), after

    def project(self, x):
        """q [B, H, T, K]; k and v [B, key heads, T, K]."""
        return [
            jnp.moveaxis(part.reshape(*x.shape[:2], -1, self.config.head_dim), 1, 2)
            for part in self.W_qkv(x)
        ]

    def read(self, q, k, v, visible):
        """W_o softmax(q k^T) v: queries [B, H, .., T, K] -> [B, .., T, D]."""
        k, v = (jnp.broadcast_to(x, (*q.shape[:2], *x.shape[2:])) for x in (k, v))
        logits = jnp.where(visible[:, None], similarity(q, k), -jnp.inf)
        output = jnp.moveaxis(attend(logits, v), 1, -2)
        return self.W_o(output.reshape(*output.shape[:-2], -1))


class FullAttention(Attention):
    """Attention over all tokens of the window before, or over the tokens in slots."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, slots: int = 0):
        super().__init__(config, rngs, slots, config.num_heads)

    def init_state(self, batch: int) -> Cache | tuple[()]:
        if not self.window:
            return ()
        old, new = super().init_state(batch), super().init_state(batch, NEW)
        return Cache(old, new, jnp.full(batch, self.window, jnp.int32))  # as if slots were full

    def __call__(self, x, place: Place, state: Cache | tuple[()]):
        q, k, v = self.project(x)
        if state:
            return self.step(q, k, v, place, state)
        positions = np.arange(x.shape[1])
        same = place.segment[:, :, None] == place.segment[:, None, :]
        visible = same & (positions[:, None] >= positions)
        return self.read(rotate(q, positions), rotate(k, positions), v, visible), state

    def step(self, q, k, v, place: Place, state: Cache):
        """Reads a single token."""
        slots = state.old.k.shape[2]
        angles = rotary(np.arange(slots + NEW), q.shape[-1], q.dtype)
        cos, sin = (lax.dynamic_slice_in_dim(x, state.count[0], 1) for x in angles)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        old, new = (
            seen._replace(live=jnp.where(place.start, False, seen.live))
            for seen in (state.old, state.new)
        )
        at = state.count[0] - slots
        new = Seen(
            lax.dynamic_update_slice_in_dim(new.k, k, at, axis=2),
            lax.dynamic_update_slice_in_dim(new.v, v, at, axis=2),
            lax.dynamic_update_slice_in_dim(new.live, jnp.ones_like(place.start), at, axis=1),
        )
        logits = [
            jnp.where(seen.live[:, None, None], similarity(q, seen.k), -jnp.inf)
            for seen in (old, new)
        ]
        weights = nnx.softmax(jnp.concatenate(logits, axis=-1)).astype(v.dtype)
        of_old, of_new = jnp.split(weights, [slots], axis=-1)
        output = jnp.moveaxis(of_old @ old.v + of_new @ new.v, 1, 2)
        return self.W_o(output.reshape(len(v), 1, -1)), Cache(old, new, state.count + 1)


def default_hidden(dim: int) -> int:
    """Width of the MLP: as many parameters as two matrices of D x 4 D."""
    return 8 * dim // 3


def make(
    config: ModelConfig, hidden: int, rngs: nnx.Rngs, window: int | None = None, slots: int = 0
) -> Stack:
    """A transformer with a sliding window, or over complete windows if `window` is None."""

    def mixer():
        if window is None:
            return FullAttention(config, rngs, slots)
        return Attention(config, rngs, window, config.num_heads)

    layers = range(config.num_layers)
    mlps = [GatedMLP(config, hidden, nnx.silu, rngs) for _ in layers]
    return Stack(config, rngs, [mixer() for _ in layers], mlps)
