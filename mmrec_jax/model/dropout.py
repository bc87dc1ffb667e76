"""Dropout with a quarter of the random bits.

`jax.random.bernoulli` spends two 32-bit words of Threefry on each element. Sixteen bits decide as
well: the rate is exact to 2^-17.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(
    x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes each element with probability `rate` and scales the others up; None: no dropout."""
    if key is None or rate == 0.0:
        return x
    count = math.prod(x.shape)
    words = threefry_2x32(jax.random.key_data(key), lax.iota(jnp.uint32, -(-count // 2)))
    bits = lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:count].reshape(x.shape)
    kept = round((1 - rate) * 2**16)
    return jnp.where(bits < kept, x * (2**16 / kept), 0)
