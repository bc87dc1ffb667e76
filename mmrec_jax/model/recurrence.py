"""The gated recurrence of MM-Rec, the core of a block.

    g_t = sigma(W_g h_{t-1} + b_g)
    m_t = sigma(W_m [z_t ; h_{t-1}] + b_m)
    f_t = gamma_t + mu (1 - m_t + gamma_t)
    h_t = (g_t + mu m_t) z_t + f_t h_{t-1}

The part of m_t's logit that does not depend on h_{t-1}, zm_t = W_mz z_t + b_m, is computed for all
steps before the scan, which carries only h. Since gamma_t <= (1 - mu) / (1 + mu), f_t < 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from mmrec_jax.model.ops import affine_gradients


class CoreInputs(NamedTuple):
    """The inputs of the recurrence at every step, float32 or wider."""

    z: Float[Array, "batch *time dim"]
    gamma: Float[Array, "batch *time dim"]
    zm: Float[Array, "batch *time dim"]  # the part of m's logit that comes from z, with the bias


class CoreWeights(NamedTuple):
    """The weights that multiply h_{t-1}, and the bias of g."""

    W: Float[Array, "dim two_dim"]  # W_g and the h part of W_m, side by side
    b_g: Float[Array, "dim"]


def gates(
    inputs: CoreInputs, weights: CoreWeights, h_prev: Float[Array, "batch *time dim"], mu: float
) -> tuple[Array, Array, Array]:
    """g_t, m_t and f_t, of one step or of all steps."""
    logit_g, logit_m = jnp.split(h_prev @ weights.W, 2, axis=-1)
    g = jax.nn.sigmoid(logit_g + weights.b_g)
    m = jax.nn.sigmoid(logit_m + inputs.zm)
    return g, m, inputs.gamma + mu * (1 - m + inputs.gamma)


def states_before(
    h0: Float[Array, "batch dim"],
    h: Float[Array, "batch time dim"],
    start: Bool[Array, "batch time"],
) -> Float[Array, "batch time dim"]:
    """h_{t-1} of every step: zero where a document starts."""
    h_prev = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
    return jnp.where(start[:, :, None], 0.0, h_prev)


def _time_major(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def recurrence(
    inputs: CoreInputs,
    weights: CoreWeights,
    h0: Float[Array, "batch dim"],
    start: Bool[Array, "batch time"],
    mu: float,
) -> Float[Array, "batch time dim"]:
    """h_t of every step; before a step that starts a document, the state is zero.

    Its gradient is a reverse scan written by hand, which is faster than JAX's own.
    """

    def step(h, x):
        inputs_t, start_t = x
        h = jnp.where(start_t[:, None], 0.0, h)
        g, m, f = gates(inputs_t, weights, h, mu)
        h = (g + mu * m) * inputs_t.z + f * h
        return h, h

    # Not unrolled: XLA's CPU compiler would recompute each step in the fusions of the next.
    _, h = lax.scan(step, h0, jax.tree.map(_time_major, (inputs, start)))
    return _time_major(h)


def _forward(inputs, weights, h0, start, mu):
    h = recurrence(inputs, weights, h0, start, mu)
    return h, (inputs, weights, h0, start, h)


def _backward(mu, residuals, grad_h):
    """With d_t = dL/dh_t, and a_t the logits of both gates:

        da_t = [d_t ; d_t] * dh_t/da_t
        d_{t-1} = dL/dh_{t-1} (from outside) + f_t d_t + da_t W^T

    Only these two lines are sequential. One matmul over all steps before them gives the gates, and
    one after them gives the gradients of weights and inputs.
    """
    inputs, weights, h0, start, h = residuals
    h_prev = states_before(h0, h, start)
    g, m, f = gates(inputs, weights, h_prev, mu)
    slope_g = inputs.z * g * (1 - g)
    slope_m = mu * (inputs.z - h_prev) * m * (1 - m)
    slopes = jnp.concatenate([slope_g, slope_m], axis=-1)
    same_document = 1.0 - start[:, :, None].astype(h.dtype)  # 0 stops the gradient at a start

    def step(carry, x):
        grad_t, f_t, slopes_t = x
        d = grad_t + carry
        da = jnp.concatenate([d, d], axis=-1) * slopes_t
        return f_t * d + da @ weights.W.T, d

    xs = jax.tree.map(_time_major, (grad_h, same_document * f, same_document * slopes))
    grad_h0, d = lax.scan(step, jnp.zeros_like(h0), xs, reverse=True)
    d = _time_major(d)

    da = jnp.concatenate([d, d], axis=-1) * slopes
    _, da_m = jnp.split(da, 2, axis=-1)
    grad_inputs = CoreInputs(z=(g + mu * m) * d, gamma=(1 + mu) * h_prev * d, zm=da_m)
    grad_W, grad_b = affine_gradients(h_prev, da)
    grad_weights = CoreWeights(W=grad_W, b_g=grad_b[: h0.shape[-1]])
    return grad_inputs, grad_weights, grad_h0, None


recurrence.defvjp(_forward, _backward)
