"""The recurrence against a float64 loop, and its hand-written gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from mmrec_jax.model.over_time import NO_EFFORT, serial
from mmrec_jax.model.recurrence import CoreInputs, CoreWeights, _recurrence, recurrence

MU = 0.1
GAMMA_MAX = (1 - MU) / (1 + MU)
NAMES = ("z", "gamma", "zm", "W", "b_g", "h0")


def random_case(time=11, batch=2, dim=4, seed=0):
    """Arguments of the core by name, float64, with documents that start in several places."""
    rng = np.random.default_rng(seed)
    case = {
        "z": rng.standard_normal((batch, time, dim)),
        "gamma": rng.uniform(0.3, GAMMA_MAX, (batch, time, dim)),
        "zm": rng.standard_normal((batch, time, dim)),
        "W": rng.standard_normal((dim, 2 * dim)),
        "b_g": rng.standard_normal(dim),
        "h0": rng.standard_normal((batch, dim)),
    }
    start = np.zeros((batch, time), bool)
    start[0, [0, 4, 5]] = True
    start[1, time - 1] = True
    return case, start


@functools.partial(jax.jit, static_argnames="by_hand")
def run(case, start, by_hand=True):
    inputs = CoreInputs(case["z"], case["gamma"], case["zm"])
    weights = CoreWeights(case["W"], case["b_g"])
    if by_hand:
        return recurrence(inputs, weights, case["h0"], start, MU)[0]
    return _recurrence.fun(inputs, weights, case["h0"], start, NO_EFFORT, MU, serial, "highest")[0]


def to_jax(case, dtype):
    return {name: jnp.asarray(value, dtype) for name, value in case.items()}


def weighted_sum_gradient(case, start, cotangent, by_hand=True):
    return jax.grad(lambda case: jnp.sum(cotangent * run(case, start, by_hand)))(case)


def without_starts(start):
    return np.zeros_like(start)


@pytest.mark.parametrize("documents", [False, True])
def test_states_equal_float64_loop(documents):
    case, start = random_case(time=37)
    start = start if documents else without_starts(start)
    expected = oracle.core_loop(**case, start=start, mu=MU)
    h = run(to_jax(case, jnp.float32), jnp.asarray(start))
    assert h.dtype == jnp.float32
    np.testing.assert_allclose(h, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=[False, True], ids=["one document", "documents"])
def differences(request):
    """A case, and central differences of a weighted sum of all states of the float64 loop."""
    case, start = random_case()
    start = start if request.param else without_starts(start)
    cotangent = np.random.default_rng(1).standard_normal(case["z"].shape)
    step = 1e-6

    def value():
        return np.sum(cotangent * oracle.core_loop(**case, start=start, mu=MU))

    gradients = {}
    for name in NAMES:
        gradients[name] = np.zeros_like(case[name])
        for index in np.ndindex(case[name].shape):
            kept = case[name][index]
            case[name][index] = kept + step
            above = value()
            case[name][index] = kept - step
            below = value()
            case[name][index] = kept
            gradients[name][index] = (above - below) / (2 * step)
    return case, start, cotangent, gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-7), ("float32", 1e-4)])
def test_every_gradient_equals_finite_differences(differences, dtype, tolerance):
    case, start, cotangent, expected = differences
    with jax.enable_x64(dtype == "float64"):
        gradients = weighted_sum_gradient(
            to_jax(case, dtype), jnp.asarray(start), jnp.asarray(cotangent, dtype)
        )
        gradients = jax.device_get(gradients)
    for name in NAMES:
        assert gradients[name].dtype == dtype
        np.testing.assert_allclose(
            gradients[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_hand_written_gradient_equals_automatic_one():
    case, start = random_case()
    cotangent = np.random.default_rng(2).standard_normal(case["z"].shape)
    with jax.enable_x64(True):
        case = to_jax(case, jnp.float64)
        by_hand = weighted_sum_gradient(case, jnp.asarray(start), cotangent)
        automatic = weighted_sum_gradient(case, jnp.asarray(start), cotangent, by_hand=False)
        for name in NAMES:
            np.testing.assert_allclose(by_hand[name], automatic[name], rtol=1e-10, atol=1e-12)


def test_document_start_ignores_the_state_before_it():
    case, _ = random_case()
    start = np.zeros(case["z"].shape[:2], bool)
    start[:, 3] = True
    case = to_jax(case, jnp.float32)
    h = run(case, jnp.asarray(start))
    other = run(case | {"h0": case["h0"] + 1}, jnp.asarray(start))
    assert np.all(np.asarray(h[:, :3] != other[:, :3]).any(axis=-1))
    np.testing.assert_array_equal(h[:, 3:], other[:, 3:])


def test_state_stays_bounded_at_the_slowest_decay():
    """20,000 steps with |z| <= 1 and m = 1/2: |h| settles below (1 + mu m) / (mu m)."""
    batch, time, dim = 1, 20_000, 8
    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, (batch, time, dim))
    z[..., : dim // 2] = 1.0
    W_g = 0.1 * rng.standard_normal((dim, dim))
    case = {
        "z": z,
        "gamma": np.full((batch, time, dim), GAMMA_MAX),
        "zm": np.zeros((batch, time, dim)),
        "W": np.concatenate([W_g, np.zeros((dim, dim))], axis=1),
        "b_g": np.full(dim, 3.0),
        "h0": np.zeros((batch, dim)),
    }
    start = jnp.zeros((batch, time), bool)
    size = np.abs(run(to_jax(case, jnp.float32), start)).max(axis=(0, 2))
    bound = (1 + MU / 2) / (MU / 2)
    assert size.max() < bound
    assert size[time // 2 :].max() > bound / 2
    assert size[time // 2 :].max() <= 1.001 * size[: time // 2].max()

    case["gamma"] = np.full((batch, time, dim), 1.0)
    assert not np.all(np.isfinite(run(to_jax(case, jnp.float32), start)))
