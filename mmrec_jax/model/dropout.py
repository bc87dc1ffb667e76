"""Dropout whose mask is a hash of the position, computed where it is applied.

`jax.random.bernoulli` writes two 32-bit words of Threefry an element to memory and reads them back;
a mask need not be that random. An integer hash of the element's index fuses with the arithmetic
around it, in the forward and in the backward pass: no mask is ever stored.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32


def dropout(
    x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes each element with probability `rate` and scales the others up; None: no dropout."""
    if key is None or rate == 0.0:
        return x
    index = lax.iota(jnp.uint32, math.prod(x.shape)).reshape(x.shape)
    kept = min(round((1 - rate) * 2**32), 2**32 - 1)
    return jnp.where(
        _hash(index, jax.random.key_data(key)) < jnp.uint32(kept), x * (2**32 / kept), 0
    )


def _hash(index: UInt32[Array, "*shape"], key: UInt32[Array, " two"]) -> UInt32[Array, "*shape"]:
    """Mixes the bits of an index with a key (the finalizer of MurmurHash3, Appleby, 2011)."""
    x = index * jnp.uint32(0x9E3779B1) + key[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) + key[1]
    x = (x ^ (x >> 16)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
