"""Rotary positions (Su et al., 2021)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

ROPE_BASE = 10_000.0


def rotary(
    positions: Sequence[int] | np.ndarray, head_dim: int, dtype: DTypeLike
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """Cosines and sines of rotary positions.

    Channels j and j + K/2 are rotated by position * base^(-2j/K). Positions are known when the
    program is traced, so the angles are computed in float64.
    """
    half = head_dim // 2
    angles = np.asarray(positions)[:, None] * ROPE_BASE ** (-np.arange(half) / half)
    return jnp.asarray(np.cos(angles), dtype), jnp.asarray(np.sin(angles), dtype)


def turn(
    x: Float[Array, "*batch K"], cos: Float[Array, "*T half"], sin: Float[Array, "*T half"]
) -> Float[Array, "*batch K"]:
    """Rotates channels j and j + K/2 of queries or keys by the angles of `rotary`."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotate(
    x: Float[Array, "*batch T K"], positions: Sequence[int] | np.ndarray
) -> Float[Array, "*batch T K"]:
    """Rotates queries or keys to these positions: one for each of T, or a single one for all."""
    return turn(x, *rotary(positions, x.shape[-1], x.dtype))
