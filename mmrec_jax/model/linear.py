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
    return dy @ w.T, weight_gradient(x, dy)


matmul.defvjp(_matmul_forward, _matmul_backward)


def weight_gradient(
    x: Float[Array, "*batch m"], dy: Float[Array, "*batch n"]
) -> Float[Array, "m n"]:
    """x^T dy over all rows."""
    x = lax.optimization_barrier(x)
    batch = tuple(range(x.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        return lax.dot_general(x, dy, ((batch, batch), ((), ())))
    return lax.optimization_barrier(lax.dot_general(dy, x, ((batch, batch), ((), ())))).T


@jax.custom_vjp
def add_bias(y: Float[Array, "*batch n"], b: Float[Array, "n"]) -> Float[Array, "*batch n"]:
    """y + b."""
    return y + b


def _add_bias_forward(y, b):
    return y + b, None


def _add_bias_backward(_, dy):
    return dy, bias_gradient(dy)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def bias_gradient(dy: Float[Array, "*batch n"]) -> Float[Array, "n"]:
    """The sum over all rows; as a product, which XLA's CPU compiler makes faster than a sum."""
    rows = dy.reshape(-1, dy.shape[-1])
    return jnp.ones(len(rows), dy.dtype) @ rows


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
def attend(
    logits: Float[Array, "*batch i j"], v: Float[Array, "*batch j k"]
) -> Float[Array, "*batch i k"]:
    """softmax(logits) v: the values that attention reads, in their own dtype."""
    return _attend_forward(logits, v)[0]


def _attend_forward(logits, v):
    weights = jax.nn.softmax(logits, axis=-1)
    output = jnp.einsum("...ij,...jk->...ik", weights.astype(v.dtype), v)
    return output, (weights, v, output)


def _attend_backward(residuals, dy):
    """dlogits = weights (dweights - mean), mean_i = sum_j weights_ij dweights_ij.

    That is also dy_i . output_i, a sum over few channels instead of many tokens (Dao et al., 2022).
    """
    weights, v, output = residuals
    dweights = _wide("...ik,...jk->...ij", dy, v)
    wide = dweights.dtype
    mean = jnp.sum(dy.astype(wide) * output.astype(wide), axis=-1, keepdims=True)
    return weights * (dweights - mean), _transposed_product(dy, weights.astype(v.dtype))


attend.defvjp(_attend_forward, _attend_backward)


def _wide(equation, a, b):
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _transposed_product(small, large):
    """large^T small, [.., j, k] of [.., i, k] and [.., i, j]."""
    small = lax.optimization_barrier(jnp.swapaxes(small, -1, -2))
    product = jnp.einsum("...ki,...ij->...kj", small, large)
    return jnp.swapaxes(lax.optimization_barrier(product), -1, -2)


class Linear(nnx.Linear):
    """`nnx.Linear` with `matmul` and `add_bias`."""

    def __call__(self, inputs: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        kernel, bias = self.kernel[...], self.bias[...] if self.use_bias else None
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        y = matmul(inputs, kernel)
        return y if bias is None else add_bias(y, bias)
