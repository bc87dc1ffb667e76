"""The learning rate of each step, weight decay and clipping."""

import math

import jax
import numpy as np
import optax
import pytest

from configs import tiny
from mmrec_jax.config import from_mapping
from mmrec_jax.errors import UserError
from mmrec_jax.learning.optimizer import learning_rate_schedule, make_optimizer
from mmrec_jax.model.params import param_shapes, stack_layers, unstack_layers
from small_runs import config

TINY = from_mapping(tiny.get_config()).train
TINY_STEPS = 378


def expected_rate(train, total_steps, step):
    if step < train.warmup_steps:
        done = step / train.warmup_steps
        return train.initial_learning_rate * (1 - done) + train.learning_rate * done
    done = (step - train.warmup_steps) / (total_steps - train.warmup_steps)
    low, high = train.final_learning_rate, train.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize(
    ("step", "rate"), [(1, 3.27e-5), (126, 2.94e-4), (253, 1.44e-4), (262, 1.30e-4)]
)
def test_the_rates_of_the_tiny_config(step, rate):
    schedule = learning_rate_schedule(TINY, TINY_STEPS)
    assert float(f"{float(schedule(step)):.2e}") == rate


@pytest.mark.parametrize(
    ("changes", "total_steps"),
    [
        ({"train__warmup_steps": 100}, 378),
        ({"train__warmup_steps": 0}, 50),
        ({"train__warmup_steps": 9, "train__final_learning_rate": 0.0}, 10),
        ({"train__initial_learning_rate": 1e-2, "train__final_learning_rate": 2e-2}, 30),
        ({f"train__{name}learning_rate": 0.0 for name in ("initial_", "", "final_")}, 30),
    ],
    ids=str,
)
def test_the_schedule_is_linear_then_a_cosine(changes, total_steps):
    train = config(**changes).train
    schedule = learning_rate_schedule(train, total_steps)
    steps = range(0, total_steps + 1, 1 + total_steps // 60)
    actual = [float(schedule(step)) for step in (*steps, total_steps)]
    expected = [expected_rate(train, total_steps, step) for step in (*steps, total_steps)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("warmup_steps", [20, 21])
def test_a_warm_up_as_long_as_the_training_is_refused(warmup_steps):
    train = config(train__warmup_steps=warmup_steps).train
    with pytest.raises(UserError, match=f"train.warmup_steps is {warmup_steps}.* only 20 steps"):
        learning_rate_schedule(train, 20)
    learning_rate_schedule(train, 22)


def updates_of(train, params, *gradients, rate=0.1):
    """The updates for several gradients, one after another."""
    optimizer = make_optimizer(train, rate if callable(rate) else lambda _: rate)
    state, step, updates = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in gradients:
        update, state = step(gradient, state, params)
        updates.append(update)
    return updates


def test_step_n_is_taken_at_the_rate_after_n_minus_1_steps():
    train = config(train__weight_decay=0.0, train__clip_norm=1e9).train
    schedule = learning_rate_schedule(train, 20)
    gradient = np.full(3, 2.0, np.float32)
    updates = updates_of(train, gradient, *[gradient] * 20, rate=schedule)
    for step, update in enumerate(updates):  # Adam's update for a constant gradient is its sign
        np.testing.assert_allclose(update, -expected_rate(train, 20, step), rtol=1e-4)


def test_weight_decay_shrinks_matrices_and_leaves_vectors():
    train = config(train__weight_decay=0.3).train
    params = {
        "vector": np.linspace(1, 2, 4, dtype=np.float32),
        "matrix": np.linspace(1, 2, 6, dtype=np.float32).reshape(2, 3),
        "scalar": np.float32(2),
        "tensor": np.linspace(1, 2, 8, dtype=np.float32).reshape(2, 2, 2),
    }
    zeros = jax.tree.map(np.zeros_like, params)
    (update,) = updates_of(train, params, zeros, rate=0.1)
    for name in ("vector", "scalar"):
        np.testing.assert_array_equal(update[name], zeros[name])
    for name in ("matrix", "tensor"):
        np.testing.assert_allclose(update[name], -0.1 * 0.3 * params[name], rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    # Adam's first update does not depend on the length of the gradient, so clipping shows in the
    # second: the longer the first gradient was, the less the second counts.
    params = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.float32)}
    rng = np.random.default_rng(0)
    huge = {"a": 1e4 * rng.standard_normal(3), "b": rng.standard_normal((2, 2))}
    norm = optax.tree.norm(huge)
    small = {"a": 0.3 * rng.standard_normal(3), "b": 0.3 * rng.standard_normal((2, 2))}
    huge, small = jax.tree.map(np.float32, (huge, small))
    cut = jax.tree.map(lambda x: np.float32(2 * x / norm), huge)  # to a global norm of 2

    def second(first, clip_norm):
        train = config(train__weight_decay=0.0, train__clip_norm=clip_norm).train
        return np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(updates_of(train, params, first, small)[1])]
        )

    np.testing.assert_allclose(second(huge, 2.0), second(cut, 1e9), rtol=1e-4)
    assert np.abs(second(huge, 1e9) - second(cut, 1e9)).max() > 0.01
    # Shorter ones are left alone.
    np.testing.assert_allclose(second(small, 2.0), second(small, 1e9), rtol=1e-6)


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_the_moments_decay_as_configured(name):
    first, second = np.float32([1.0]), np.float32([-0.5])
    train = config(train__weight_decay=0.0, **{f"train__{name}": 0.6}).train
    m = train.b1 * (1 - train.b1) * 1.0 + (1 - train.b1) * -0.5
    v = train.b2 * (1 - train.b2) * 1.0 + (1 - train.b2) * 0.25
    expected = -0.1 * (m / (1 - train.b1**2)) / math.sqrt(v / (1 - train.b2**2))
    update = updates_of(train, first, first, second)[1]
    np.testing.assert_allclose(update, [expected], rtol=1e-4)


def test_muon_makes_the_update_of_each_map_orthogonal():
    rng = np.random.default_rng(0)
    D, rate, multiple = 16, 0.1, 3.0

    def matrix(*shape):
        return rng.standard_normal(shape, np.float32)

    gradient = {
        "W_fused": {"kernel": matrix(D, 6 * D), "bias": matrix(6 * D)},
        "W_m": {"kernel": matrix(2 * D, D)},
        "W_1": {"kernel": matrix(D, 4 * D)},
        "embedding": {"embedding": matrix(20, D)},
    }
    params = jax.tree.map(lambda x: np.float32(2 * x), gradient)
    train = config(
        train__optimizer="muon", train__muon_rate=multiple, train__weight_decay=0.25
    ).train
    (update,) = updates_of(train, params, gradient, rate=rate)

    def expect_orthogonal(update, gradient, params):
        """U V^T of the gradient's singular value decomposition, to the precision of the iteration.

        Newton and Schulz's quintic iteration ends with singular values between 0.6 and 1.3.
        """
        update = -update / (rate * multiple) - 0.25 * params
        left, values, right = np.linalg.svd(np.float64(gradient), full_matrices=False)
        scale = max(1, gradient.shape[1] / gradient.shape[0]) ** 0.5
        achieved = np.diag(left.T @ np.float64(update) @ right.T) / scale
        large = values > 0.1 * values[0]
        assert np.all((achieved[large] > 0.6) & (achieved[large] < 1.3)), achieved
        rest = left.T @ np.float64(update) @ right.T / scale - np.diag(achieved)
        assert np.abs(rest).max() < 1e-2

    p = np.s_[:, 4 * D : 5 * D]
    for index in (0, 1, 2, 3, 5):
        one = np.s_[:, index * D : (index + 1) * D]
        expect_orthogonal(*(x["W_fused"]["kernel"][one] for x in (update, gradient, params)))
    for one in (np.s_[:D], np.s_[D:]):
        expect_orthogonal(*(x["W_m"]["kernel"][one] for x in (update, gradient, params)))
    expect_orthogonal(*(x["W_1"]["kernel"] for x in (update, gradient, params)))
    # Adam's first update has the sign of the gradient; its length is that of Nesterov's momentum.
    length = rate * (train.b1 * (1 - train.b1) / (1 - train.b1**2) + 1)
    for name, part, of in (
        ("embedding", "embedding", np.s_[:]),
        ("W_fused", "bias", np.s_[:]),
        ("W_fused", "kernel", p),
    ):
        expected = -length * np.sign(gradient[name][part][of])
        np.testing.assert_allclose(update[name][part][of], expected, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_rates_are_those_of_the_base_width(optimizer):
    rng = np.random.default_rng(0)
    D = 24
    gradient = {
        "W_o": {"kernel": rng.standard_normal((D, D)), "bias": rng.standard_normal(D)},
        "W_fused": {"kernel": rng.standard_normal((D, 6 * D))},
        "embedding": {"embedding": rng.standard_normal((20, D))},
    }
    gradient = jax.tree.map(np.float32, gradient)
    changes = {"train__optimizer": optimizer, "train__weight_decay": 0.0}
    plain, scaled = (
        updates_of(config(train__base_dim=base, **changes).train, gradient, gradient)[0]
        for base in (0, 8)
    )
    ratio = jax.tree.map(lambda x, y: y / x, plain, scaled)
    of_maps = 1 / 3 if optimizer == "adamw" else 1
    of_fused = np.full(6 * D, float(of_maps))
    of_fused[4 * D : 5 * D] = 1 / 3  # p, which Adam trains in any case
    np.testing.assert_allclose(ratio["embedding"]["embedding"], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(ratio["W_o"]["kernel"], of_maps, rtol=1e-5)
    np.testing.assert_allclose(ratio["W_o"]["bias"], 1, rtol=1e-5)
    np.testing.assert_allclose(ratio["W_fused"]["kernel"], np.tile(of_fused, (D, 1)), rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stacked_layers_are_updated_like_single_ones(optimizer):
    rng, layers = np.random.default_rng(0), 3
    cfg = config(model__num_layers=layers, train__optimizer=optimizer, train__base_dim=8)
    random = [
        jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), param_shapes(cfg.model))
        for _ in range(3)
    ]
    expected = updates_of(cfg.train, *random)
    stacked = updates_of(cfg.train, *map(stack_layers, random))
    for update, other in zip(expected, stacked, strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
            update,
            unstack_layers(other, layers),
        )
