"""The operations that have a faster form on CPUs: the matmul of a linear map, and dropout.

Each of these forms saves at least 3% of a complete training step; `python -m benchmarks.ops`
measures them. The plain form next to it defines what is computed: other backends use it, and tests
compare the two.
"""

import contextlib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

OPERATIONS = ("matmul", "dropout")
_plain: frozenset[str] = frozenset()


@contextlib.contextmanager
def plain(*operations: str) -> Iterator[None]:
    """Makes programs that are traced inside use the plain form of these operations on CPUs, too."""
    global _plain
    before, _plain = _plain, frozenset(operations)
    try:
        yield
    finally:
        _plain = before


def _is_fast(operation: str) -> bool:
    return jax.default_backend() == "cpu" and operation not in _plain


# --- matmul ---


def matmul(x: Float[Array, "*batch m"], w: Float[Array, "m n"]) -> Float[Array, "*batch n"]:
    """x W over the last axis of x."""
    return _matmul(x, w) if _is_fast("matmul") else x @ w


@jax.custom_vjp
def _matmul(x, w):
    return x @ w


def _matmul_forward(x, w):
    return x @ w, (x, w)


def _matmul_backward(residuals, dy):
    x, w = residuals
    return dy @ w.T, _weight_gradient(x, dy)


def _weight_gradient(x, dy):
    """x^T dy, with the smaller factor on the left; JAX's own rule transposes dy^T x.

    For that, XLA's CPU compiler copies the larger factor or uses a slower kind of matmul. The
    barriers keep it from turning these products back into that form.
    """
    x = lax.optimization_barrier(x)
    rows = tuple(range(x.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        return lax.dot_general(x, dy, ((rows, rows), ((), ())))
    return lax.optimization_barrier(lax.dot_general(dy, x, ((rows, rows), ((), ())))).T


_matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nnx.Linear):
    """`nnx.Linear` with `matmul`."""

    def __call__(self, inputs: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        kernel, bias = self.kernel[...], self.bias[...] if self.use_bias else None
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        y = matmul(inputs, kernel)
        return y if bias is None else y + bias


# --- dropout ---


def dropout(
    x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes each element with probability `rate` and scales up the others, if there is a key."""
    if key is None or rate == 0.0:
        return x
    if _is_fast("dropout"):
        return _hashed_dropout(x, rate, key)
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def _hashed_dropout(x, rate, key):
    """Dropout whose mask is a hash of the element's index, computed where it is applied.

    `jax.random.bernoulli` writes two 32-bit words of Threefry per element to memory and reads them
    back; a mask need not be that random. The hash fuses with the arithmetic around it, in the
    forward and in the backward pass, so no mask is ever stored.
    """
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
