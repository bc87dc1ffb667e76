"""The recurrence in parallel, and in one kernel: equal to the scan, whatever the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

import oracle
from mmrec_jax.model import fused_scan
from mmrec_jax.model.layout import AXES
from mmrec_jax.model.over_time import NO_EFFORT, Shooting, serial
from mmrec_jax.model.recurrence import CoreInputs, CoreWeights, recurrence

MU = 0.1
DIM = 8


def random_case(time, batch=2, dim=DIM, scale=1.0, dtype=np.float64):
    """Inputs, weights and h0; the spectral norm of each half of W is about 2 `scale`."""
    rng = np.random.default_rng(time)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    gamma = rng.uniform(0, (1 - MU) / (1 + MU), (batch, time, dim)).astype(dtype)
    inputs = CoreInputs(normal(batch, time, dim), gamma, normal(batch, time, dim))
    W = (scale / dim**0.5 * normal(dim, 2 * dim)).astype(dtype)
    return inputs, CoreWeights(W, normal(dim)), normal(batch, dim)


def random_starts(time, batch=2, share=0.05):
    return np.random.default_rng(1).random((batch, time)) < share


@functools.partial(jax.jit, static_argnames="solve")
def run(case, start, solve):
    return recurrence(*case, start, MU, solve)


@functools.partial(jax.jit, static_argnames="solve")
def gradients(case, start, cotangent, solve):
    """The gradients of a weighted sum of all states, and what they took."""

    def objective(case, of_gradient):
        h, _ = recurrence(*case, start, MU, solve, of_gradient)
        return jnp.sum(cotangent * h)

    return jax.grad(objective, argnums=(0, 1))(case, NO_EFFORT)


def relative_error(actual, expected):
    """The largest, over a sequence."""
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


EVERY_TIME = [pytest.param(time, 7, marks=pytest.mark.slow) for time in range(1, 131)]


@pytest.mark.parametrize(
    ("time", "interval"), [(1, 1), (2, 1), (130, 1), (7, 7), (8, 7), (50, 7), *EVERY_TIME]
)
def test_float64_states_and_gradients_are_those_of_the_scan(time, interval):
    case, start = random_case(time), random_starts(time)
    cotangent = np.random.default_rng(2).standard_normal((2, time, DIM))
    solve = Shooting(interval, tolerance=1e-13, max_sweeps=40)
    with jax.enable_x64(True):
        h, effort = jax.device_get(run(case, start, solve))
        expected, _ = jax.device_get(run(case, start, serial))
        of_case, of_gradient = jax.device_get(gradients(case, start, cotangent, solve))
        expected_gradients, _ = jax.device_get(gradients(case, start, cotangent, serial))
    np.testing.assert_allclose(h, expected, rtol=0, atol=1e-12)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9),
        of_case,
        expected_gradients,
    )
    for took in (effort, of_gradient):
        assert took.scans == 0
        assert (took.sweeps > 0) == (time > interval)


def test_the_corrections_are_exact_where_no_channel_depends_on_another():
    """Then the gradient, which is linear, is found by one sweep and confirmed by the next."""
    inputs, weights, h0 = random_case(200, dtype=np.float32)
    W = np.concatenate([0.5 * np.eye(DIM), -np.eye(DIM)], axis=1, dtype=np.float32)
    case, start = (inputs, weights._replace(W=W), h0), random_starts(200, share=0.01)
    solve = Shooting(interval=1, tolerance=1e-4, max_sweeps=30)
    _, of_states = run(case, start, solve)
    _, of_gradient = gradients(case, start, np.ones((2, 200, DIM), np.float32), solve)
    assert of_gradient.sweeps == 2
    assert of_states.sweeps <= 4  # Newton's method; 6 with the slope of f alone


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_errors_are_within_the_tolerance(tolerance):
    case, start = random_case(1000, dtype=np.float32, scale=2.0), random_starts(1000, share=0.002)
    cotangent = np.random.default_rng(2).standard_normal((2, 1000, DIM)).astype(np.float32)
    solve = Shooting(interval=16, tolerance=tolerance, max_sweeps=30)
    h, effort = jax.device_get(run(case, start, solve))
    assert relative_error(h, run(case, start, serial)[0]) < 2 * tolerance
    of_case, of_gradient = jax.device_get(gradients(case, start, cotangent, solve))
    expected, _ = jax.device_get(gradients(case, start, cotangent, serial))
    errors = jax.tree.map(relative_error, of_case, expected)
    assert max(jax.tree.leaves(errors)) < 4 * tolerance
    # So the test would notice if the sweeps did not end before they are as exact as they can be.
    most = {1e-2: 5, 1e-4: 7, 1e-6: 9}[tolerance]
    assert 2 <= effort.sweeps <= most
    assert 2 <= of_gradient.sweeps <= most


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 10.0, 20.0, 50.0])
@pytest.mark.parametrize("interval", [1, 16, 64])
def test_whatever_the_weights_the_recurrence_is_solved(scale, interval):
    """From a scale of about 20 on it is chaotic: every rounding error grows to the size of h."""
    case = random_case(512, dim=32, scale=scale, dtype=np.float32)
    start = np.zeros((2, 512), bool)
    h, effort = run(case, start, Shooting(interval, tolerance=1e-5, max_sweeps=16))
    if scale < 20:
        assert relative_error(h, run(case, start, serial)[0]) < 2e-5
    else:
        assert effort.scans == 1
    inputs, weights, h0 = jax.tree.map(np.float64, case)
    h = np.asarray(h, np.float64)
    steps = CoreInputs(*(x.reshape(1024, 1, 32) for x in inputs))
    before = np.concatenate([h0[:, None], h[:, :-1]], axis=1).reshape(1024, 32)
    after = oracle.core_loop(*steps, *weights, before, np.zeros((1024, 1), bool), MU)
    assert relative_error(h.reshape(1024, 1, 32), after) < (2e-5 if effort.scans == 0 else 1e-6)


def test_where_the_recurrence_is_not_finite_so_is_the_result():
    inputs, weights, h0 = random_case(64, dtype=np.float32)
    inputs.z[0, 20, 3] = np.nan
    start = np.zeros((2, 64), bool)
    solve = Shooting(interval=8, tolerance=1e-5, max_sweeps=16)
    h, effort = run((inputs, weights, h0), start, solve)
    np.testing.assert_allclose(h, run((inputs, weights, h0), start, serial)[0], atol=1e-6)
    assert effort.scans == 1
    assert np.all(np.isfinite(h[0, :20]))
    assert not np.any(np.isfinite(h[0, 21:]))


@pytest.mark.parametrize("scale", [1, 20])
def test_devices_can_divide_the_time(scale):
    """4 devices for each of 2 sequences, with 4 intervals each; sweeps do not solve the second."""
    solve = Shooting(interval=4, tolerance=1e-12, max_sweeps=16)
    case, start = random_case(64, scale=scale), random_starts(64)
    cotangent = np.random.default_rng(2).standard_normal((2, 64, DIM))
    mesh = jax.make_mesh((1, 2, 4), AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.enable_x64(True):
        expected, _ = jax.device_get(run(case, start, serial))
        of_one, _ = jax.device_get(gradients(case, start, cotangent, serial))
        with jax.set_mesh(mesh):
            h, effort = jax.device_get(run(case, start, solve))
            of_case, of_gradient = jax.device_get(gradients(case, start, cotangent, solve))
    assert effort.scans == of_gradient.scans == (scale > 1)
    assert relative_error(h, expected) < 1e-12
    assert max(jax.tree.leaves(jax.tree.map(relative_error, of_case, of_one))) < 1e-9


@pytest.mark.parametrize("blocks", [1, 4, 60])
def test_the_kernel_for_tpus_computes_what_the_scan_does(blocks, monkeypatch):
    """However many blocks the steps are divided into."""
    tile = 8 * 128 * 4
    # Forward, a step has z, gamma, zm, whether a document starts, and h; backward it has dL/dh, f,
    # both slopes (together as wide as a tile), and d.
    monkeypatch.setattr(fused_scan, "BLOCKS", 2 * 5 * tile * 60 // blocks)
    case, start = random_case(60, batch=3, dim=16, dtype=np.float32), random_starts(60, batch=3)
    check_kernel(case, start)


def test_devices_divide_the_sequences_of_the_kernel():
    case, start = random_case(6, batch=4, dim=8, dtype=np.float32), random_starts(6, batch=4)
    mesh = jax.make_mesh((2, 2, 1), AXES, (AxisType.Auto,) * 3, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        check_kernel(case, start)


def check_kernel(case, start):
    cotangent = np.random.default_rng(2).standard_normal(case[0].z.shape).astype(np.float32)
    solve = functools.partial(fused_scan.kernel_scan)  # compiled anew, with other blocks
    with pltpu.force_tpu_interpret_mode():
        h, effort = jax.device_get(run(case, start, solve))
        found = jax.device_get(gradients(case, start, cotangent, solve))
    assert effort == NO_EFFORT
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(h, run(case, start, serial)[0])
    jax.tree.map(close, found[0], gradients(case, start, cotangent, serial)[0])


def test_elsewhere_it_is_the_scan():
    case, start = random_case(6, dtype=np.float32), random_starts(6)
    h, _ = run(case, start, fused_scan.fused_scan)
    np.testing.assert_array_equal(h, run(case, start, serial)[0])
    text = run.trace(case, start, fused_scan.fused_scan).lower(lowering_platforms=("cuda",))
    assert "custom_call" not in text.as_text()


def test_blocks_of_the_kernel_are_as_large_as_fits():
    assert fused_scan._largest_divisor(60, 25) == 20
    assert fused_scan._largest_divisor(7, 6) == 1
    assert fused_scan._largest_divisor(7, 0) == 1  # a single step is larger than a block should be
