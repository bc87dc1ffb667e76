"""The gated recurrence of MM-Rec, the core of a block.

    g_t = sigma(h_{t-1} W_g + b_g)
    m_t = sigma(h_{t-1} W_mh + zm_t)                        zm_t = z_t W_mz + b_m
    h_t = (g_t + mu m_t) z_t + (gamma_t + mu (1 - m_t + gamma_t)) h_{t-1}

Everything that does not depend on h_{t-1} is computed outside, for all steps in one matmul; the
scan carries only h. With gamma_t <= (1 - mu) / (1 + mu) the factor on h_{t-1} stays below 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from mmrec_jax.model.linear import bias_gradient, weight_gradient


class CoreInputs(NamedTuple):
    """What drives the recurrence at every step; all float32 or wider."""

    z: Float[Array, "batch time dim"]
    gamma: Float[Array, "batch time dim"]
    zm: Float[Array, "batch time dim"]  # the part of m's logit that z gives, bias included


class CoreWeights(NamedTuple):
    """The weights that multiply h_{t-1}: [W_g ; h part of W_m] side by side, and b_g."""

    W: Float[Array, "dim two_dim"]
    b_g: Float[Array, "dim"]


def recurrence(
    inputs: CoreInputs,
    weights: CoreWeights,
    h0: Float[Array, "batch dim"],
    start: Bool[Array, "batch time"],
    mu: float,
    impl: str = "scan",
) -> Float[Array, "batch time dim"]:
    """Runs the recurrence over time.

    Args:
        inputs: z, gamma and zm for every step.
        weights: the recurrent weights.
        h0: the state before the first step.
        start: true where a document starts; the state before such a step is zero.
        mu: the weight of the gated integration.
        impl: "scan" (`lax.scan` with a hand-written reverse scan) or "autodiff" (the same scan,
            differentiated by JAX: the slow one, kept as a check).

    Returns:
        h_t for every step, in the dtype of the inputs.

    Raises:
        ValueError: `impl` is neither of the two.
    """
    if impl == "scan":
        return _scan_with_custom_vjp(mu, inputs, weights, h0, start)
    if impl == "autodiff":
        return _forward_scan(mu, inputs, weights, h0, start)
    raise ValueError(f"unknown recurrence impl {impl!r}; choose 'scan' or 'autodiff'")


def _time_major(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


def _forward_scan(mu, inputs, weights, h0, start):
    dim = h0.shape[-1]

    def step(h, x):
        z, gamma, zm, start_t = x
        h = jnp.where(start_t[:, None], 0.0, h)
        logits = h @ weights.W
        g = jax.nn.sigmoid(logits[:, :dim] + weights.b_g)
        m = jax.nn.sigmoid(logits[:, dim:] + zm)
        h = (g + mu * m) * z + (gamma + mu * (1 - m + gamma)) * h
        return h, h

    xs = jax.tree.map(_time_major, (*inputs, start))
    # Not unrolled: XLA's CPU compiler would compute each step again in the fusions of the next.
    _, hs = lax.scan(step, h0, xs)
    return _time_major(hs)


_scan_with_custom_vjp = jax.custom_vjp(_forward_scan, nondiff_argnums=(0,))


def _forward(mu, inputs, weights, h0, start):
    h = _forward_scan(mu, inputs, weights, h0, start)
    return h, (inputs, weights, h0, start, h)


def _backward(mu, residuals, grad_h):
    """dL/dh_{t-1} = f_t * d_t + (da_t) W^T with d_t = dL/dh_t, da_t = d_t * (dh_t / d logits_t).

    Only that line is sequential. The gates come from one matmul over all steps before it, the
    gradients of the weights and the inputs from one after it.
    """
    inputs, weights, h0, start, h = residuals
    z, gamma, zm = inputs
    dim = h0.shape[-1]
    h_prev = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
    h_prev = jnp.where(start[:, :, None], 0.0, h_prev)

    logits = h_prev @ weights.W
    g = jax.nn.sigmoid(logits[..., :dim] + weights.b_g)
    m = jax.nn.sigmoid(logits[..., dim:] + zm)
    keep = gamma + mu * (1 - m + gamma)
    slope_g = z * g * (1 - g)
    slope_m = mu * (z - h_prev) * m * (1 - m)
    slopes = jnp.concatenate([slope_g, slope_m], axis=-1)
    going_on = 1.0 - start[:, :, None].astype(h.dtype)  # nothing flows back beyond a start
    transposed = lax.optimization_barrier(weights.W.T)

    def step(carry, x):
        grad, keep_t, slopes_t = x
        d = grad + carry
        da = jnp.concatenate([d, d], axis=-1) * slopes_t
        return d * keep_t + da @ transposed, d

    xs = jax.tree.map(_time_major, (grad_h, going_on * keep, going_on * slopes))
    grad_h0, d = lax.scan(step, jnp.zeros_like(h0), xs, reverse=True)
    d = _time_major(d)

    da = jnp.concatenate([d, d], axis=-1) * slopes
    da_g, da_m = jnp.split(da, 2, axis=-1)
    grad_inputs = CoreInputs(z=d * (g + mu * m), gamma=d * (1 + mu) * h_prev, zm=da_m)
    grad_weights = CoreWeights(W=weight_gradient(h_prev, da), b_g=bias_gradient(da_g))
    return grad_inputs, grad_weights, grad_h0, None


_scan_with_custom_vjp.defvjp(_forward, _backward)
