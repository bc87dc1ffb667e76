"""The operations that have a faster form on CPUs: linear maps, attention and dropout.

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

OPERATIONS = ("affine", "attention", "dropout")
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


# --- linear maps ---


def affine(
    x: Float[Array, "*batch m"], w: Float[Array, "m n"], b: Float[Array, "n"] | None
) -> Float[Array, "*batch n"]:
    """x W + b over the last axis of x; without b if that is None."""
    return _affine(x, w, b) if _is_fast("affine") else _plain_affine(x, w, b)


def affine_gradients(
    x: Float[Array, "*batch m"], dy: Float[Array, "*batch n"]
) -> tuple[Float[Array, "m n"], Float[Array, "n"]]:
    """The gradients of `affine` with respect to W and b, x^T dy and the sum of dy."""
    if _is_fast("affine"):
        return _weight_gradient(x, dy), _bias_gradient(dy)
    return jnp.einsum("...m,...n->mn", x, dy), dy.sum(range(dy.ndim - 1))


def _plain_affine(x, w, b):
    y = x @ w
    return y if b is None else y + b


_affine = jax.custom_vjp(_plain_affine)


def _affine_forward(x, w, b):
    return _plain_affine(x, w, b), (x, w, b)


def _affine_backward(residuals, dy):
    x, w, b = residuals
    return dy @ w.T, _weight_gradient(x, dy), None if b is None else _bias_gradient(dy)


_affine.defvjp(_affine_forward, _affine_backward)


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


def _bias_gradient(dy):
    """The sum over all rows as a product with ones, which is faster than XLA's reduction."""
    rows = dy.reshape(-1, dy.shape[-1])
    return jnp.ones(len(rows), dy.dtype) @ rows


class Linear(nnx.Linear):
    """`nnx.Linear` with `affine`."""

    def __call__(self, inputs: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        kernel, bias = self.kernel[...], self.bias[...] if self.use_bias else None
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        return affine(inputs, kernel, bias)


# --- attention ---


def similarity(
    q: Float[Array, "*batch i K"], k: Float[Array, "*batch j K"]
) -> Float[Array, "*batch i j"]:
    """The attention logits q k^T / sqrt(K), float32 or wider."""
    products = _products if _is_fast("attention") else _plain_products
    return products(q, k) / q.shape[-1] ** 0.5


def attend(
    logits: Float[Array, "*batch i j"], v: Float[Array, "*batch j K"]
) -> Float[Array, "*batch i K"]:
    """softmax(logits) v: the values that attention reads, in the dtype of v."""
    return (_attend if _is_fast("attention") else _plain_attend)(logits, v)


def _wide_einsum(equation, a, b):
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _plain_products(q, k):
    return _wide_einsum("...ik,...jk->...ij", q, k)


_products = jax.custom_vjp(_plain_products)


def _products_forward(q, k):
    return _plain_products(q, k), (q, k)


def _products_backward(residuals, dy):
    q, k = residuals
    dq = _wide_einsum("...ij,...jk->...ik", dy, k).astype(q.dtype)
    return dq, _transposed_product(q, dy).astype(k.dtype)


_products.defvjp(_products_forward, _products_backward)


def _plain_attend(logits, v):
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("...ij,...jk->...ik", weights, v)


_attend = jax.custom_vjp(_plain_attend)


def _attend_forward(logits, v):
    weights = jax.nn.softmax(logits, axis=-1)
    output = jnp.einsum("...ij,...jk->...ik", weights.astype(v.dtype), v)
    return output, (weights, v, output)


def _attend_backward(residuals, dy):
    """dlogits = weights (dweights - mean) with mean_i = sum_j weights_ij dweights_ij.

    The mean is also dy_i . output_i, a sum over few channels instead of many tokens (Dao et al.,
    2022).
    """
    weights, v, output = residuals
    dweights = _wide_einsum("...ik,...jk->...ij", dy, v)
    wide = dweights.dtype
    mean = jnp.sum(dy.astype(wide) * output.astype(wide), axis=-1, keepdims=True)
    return weights * (dweights - mean), _transposed_product(dy, weights.astype(v.dtype))


_attend.defvjp(_attend_forward, _attend_backward)


def _transposed_product(small, large):
    """large^T small, [.., j, K] of [.., i, K] and [.., i, j], without a transpose of `large`."""
    small = lax.optimization_barrier(jnp.swapaxes(small, -1, -2))
    product = jnp.einsum("...ki,...ij->...kj", small, large)
    return jnp.swapaxes(lax.optimization_barrier(product), -1, -2)


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
    hashes = _hash(index, jax.random.key_data(key))
    return jnp.where(hashes < jnp.uint32(kept), x * (2**32 / kept), 0)


def _hash(index: UInt32[Array, "*shape"], key: UInt32[Array, " two"]) -> UInt32[Array, "*shape"]:
    """Mixes the bits of an index with a key (the finalizer of MurmurHash3, Appleby, 2011)."""
    x = index * jnp.uint32(0x9E3779B1) + key[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) + key[1]
    x = (x ^ (x >> 16)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
