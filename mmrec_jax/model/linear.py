"""A linear layer whose weight gradient is one plain matmul.

JAX's own gradient of x W is transpose(dy^T x). XLA's CPU compiler keeps that form, copies dy^T and
compiles it to another kind of matmul than x^T dy, which was the faster one for the tiny shapes.
"""

import jax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x: Float[Array, "*batch m"], w: Float[Array, "m n"]) -> Float[Array, "*batch n"]:
    """x W over the last axis of x."""
    return x @ w


def _forward(x, w):
    return x @ w, (x, w)


def _backward(residuals, dy):
    x, w = residuals
    x = lax.optimization_barrier(x)
    batch = tuple(range(x.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        dw = lax.dot_general(x, dy, ((batch, batch), ((), ())))
    else:
        dw = lax.optimization_barrier(lax.dot_general(dy, x, ((batch, batch), ((), ())))).T
    return dy @ w.T, dw


matmul.defvjp(_forward, _backward)


class Linear(nnx.Linear):
    """`nnx.Linear` with `matmul`."""

    def __call__(self, inputs: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        kernel, bias = self.kernel[...], self.bias[...] if self.use_bias else None
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        y = matmul(inputs, kernel)
        return y if bias is None else y + bias
