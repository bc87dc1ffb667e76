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
from jaxtyping import Array, Bool, Float

from mmrec_jax.model.ops import affine_gradients
from mmrec_jax.model.over_time import NO_EFFORT, Effort, Solver, serial


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


def recurrence(
    inputs: CoreInputs,
    weights: CoreWeights,
    h0: Float[Array, "batch dim"],
    start: Bool[Array, "batch time"],
    mu: float,
    solve: Solver = serial,
    of_gradient: Effort = NO_EFFORT,
    precision: str = "highest",
) -> tuple[Float[Array, "batch time dim"], Effort]:
    """h_t of every step; before a step that starts a document, the state is zero.

    Args:
        inputs, weights, h0, start, mu: of the recurrence.
        solve: how the steps are computed, forward and backward.
        of_gradient: its gradient is by definition the effort of the gradient, which cannot be
            returned in another way.
        precision: of the products of the steps, forward and backward, whose errors add up; as in
            `jax.default_matmul_precision`.

    Returns:
        h, and what it took.
    """
    return _recurrence(inputs, weights, h0, start, of_gradient, mu, solve, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _recurrence(inputs, weights, h0, start, of_gradient, mu, solve, precision):
    def step(weights, h, x):
        weights, diagonals = weights
        inputs_t, same_document_t = x
        h = same_document_t * h
        g, m, f = gates(inputs_t, weights, h, mu)
        of_logits = jnp.concatenate(_slopes(inputs_t.z, h, g, m, mu), axis=-1) * diagonals
        slope = f + sum(jnp.split(of_logits, 2, axis=-1))
        h = (g + mu * m) * inputs_t.z + f * h
        return h, h, same_document_t * slope

    xs = inputs, _same_document(start, h0.dtype)
    with jax.default_matmul_precision(precision):
        h, _, effort = solve(step, (weights, _diagonals(weights)), h0, xs)
    return h, effort


def _same_document(start, dtype):
    """[batch, T, 1]: 0 where a document starts, 1 elsewhere."""
    return 1 - start[:, :, None].astype(dtype)


def _slopes(z, h_prev, g, m, mu):
    """dh_t with respect to the logits of g and m."""
    return z * g * (1 - g), mu * (z - h_prev) * m * (1 - m)


def _diagonals(weights: CoreWeights):
    """[2D]: how both logits of a channel depend on its own h_{t-1}."""
    return jnp.concatenate([jnp.diagonal(W) for W in jnp.split(weights.W, 2, axis=1)])


def _forward(inputs, weights, h0, start, of_gradient, mu, solve, precision):
    h, effort = _recurrence(inputs, weights, h0, start, of_gradient, mu, solve, precision)
    return (h, effort), (inputs, weights, h0, start, h)


def _backward(mu, solve, precision, residuals, gradients):
    """With d_t = dL/dh_t, and a_t the logits of both gates:

        da_t = [d_t ; d_t] * dh_t/da_t
        d_{t-1} = dL/dh_{t-1} (from outside) + f_t d_t + da_t W^T

    Only these two lines are sequential. One matmul over all steps before them gives the gates, and
    one after them gives the gradients of weights and inputs.
    """
    inputs, weights, h0, start, h = residuals
    grad_h, _ = gradients
    h_prev = states_before(h0, h, start)
    g, m, f = gates(inputs, weights, h_prev, mu)
    slopes = jnp.concatenate(_slopes(inputs.z, h_prev, g, m, mu), axis=-1)

    def step(weights, carry, x):
        W, diagonals = weights
        grad_t, f_t, slopes_t = x
        d = grad_t + carry
        da = jnp.concatenate([d, d], axis=-1) * slopes_t
        slope = f_t + sum(jnp.split(slopes_t * diagonals, 2, axis=-1))
        return f_t * d + da @ W.T, d, slope

    same_document = _same_document(start, h.dtype)
    xs = (grad_h, same_document * f, same_document * slopes)
    of_steps = weights.W, _diagonals(weights)
    with jax.default_matmul_precision(precision):
        d, grad_h0, effort = solve(step, of_steps, jnp.zeros_like(h0), xs, reverse=True)

    da = jnp.concatenate([d, d], axis=-1) * slopes
    _, da_m = jnp.split(da, 2, axis=-1)
    grad_inputs = CoreInputs(z=(g + mu * m) * d, gamma=(1 + mu) * h_prev * d, zm=da_m)
    grad_W, grad_b = affine_gradients(h_prev, da)
    grad_weights = CoreWeights(W=grad_W, b_g=grad_b[: h0.shape[-1]])
    return grad_inputs, grad_weights, grad_h0, None, effort


_recurrence.defvjp(_forward, _backward)
