"""Matmuls whose gradients are plain matmuls, and the linear layer made of them.

JAX's own gradients contract the first axis of both factors, as in x^T dy. XLA's CPU compiler copies
a factor for that, or falls back to a slower kind of matmul. Here every product contracts the last
axis of its left factor; what has to be transposed for it is the smaller array.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x: Float[Array, "*batch m"], w: Float[Array, "m n"]) -> Float[Array, "*batch n"]:
    """x W over the last axis of x."""
    return x @ w


def _matmul_forward(x, w):
    return x @ w, (x, w)


def _matmul_backward(residuals, dy):
    x, w = residuals
    x = lax.optimization_barrier(x)
    batch = tuple(range(x.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        dw = lax.dot_general(x, dy, ((batch, batch), ((), ())))
    else:
        dw = lax.optimization_barrier(lax.dot_general(dy, x, ((batch, batch), ((), ())))).T
    return dy @ w.T, dw


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def similarities(
    q: Float[Array, "*batch i k"], k: Float[Array, "*batch j k"]
) -> Float[Array, "*batch i j"]:
    """q k^T, float32 or wider: the logits of attention."""
    return _wide("...ik,...jk->...ij", q, k)


def _similarities_forward(q, k):
    return similarities(q, k), (q, k)


def _similarities_backward(residuals, dy):
    q, k = residuals
    dq = _wide("...ij,...jk->...ik", dy, k).astype(q.dtype)
    return dq, _transposed_product(q, dy).astype(k.dtype)


similarities.defvjp(_similarities_forward, _similarities_backward)


@jax.custom_vjp
def mixtures(
    weights: Float[Array, "*batch i j"], v: Float[Array, "*batch j k"]
) -> Float[Array, "*batch i k"]:
    """weights v: the values that attention reads, in their own dtype."""
    return jnp.einsum("...ij,...jk->...ik", weights, v)


def _mixtures_forward(weights, v):
    return mixtures(weights, v), (weights, v)


def _mixtures_backward(residuals, dy):
    weights, v = residuals
    dweights = jnp.einsum("...ik,...jk->...ij", dy, v)
    return dweights, _transposed_product(dy, weights)


mixtures.defvjp(_mixtures_forward, _mixtures_backward)


def _wide(equation, a, b):
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _transposed_product(small, large):
    """large^T small, [.., j, k] of [.., i, k] and [.., i, j]."""
    small = lax.optimization_barrier(jnp.swapaxes(small, -1, -2))
    product = jnp.einsum("...ki,...ij->...kj", small, large)
    return jnp.swapaxes(lax.optimization_barrier(product), -1, -2)


class Linear(nnx.Linear):
    """`nnx.Linear` with `matmul`."""

    def __call__(self, inputs: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        kernel, bias = self.kernel[...], self.bias[...] if self.use_bias else None
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        y = matmul(inputs, kernel)
        return y if bias is None else y + bias
