"""Operations with a form for CPUs against their plain form; dropout against true randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.model import ops
from mmrec_jax.model.ops import affine, affine_gradients, attend, dropout, similarity

on_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="only CPUs have another form than the plain one"
)


def matmul(x, w):
    return affine(x, w, None)


@on_cpu
@pytest.mark.parametrize(
    ("operation", "function", "shapes"),
    [
        ("affine", affine, [(2, 6, 5), (5, 3), (3,)]),
        ("affine", affine, [(2, 6, 5), (5, 8), (8,)]),
        ("affine", matmul, [(2, 6, 5), (5, 5)]),
        ("affine", affine_gradients, [(2, 6, 5), (2, 6, 4)]),
        ("attention", similarity, [(2, 3, 6, 4), (2, 3, 7, 4)]),
        ("attention", attend, [(2, 3, 6, 7), (2, 3, 7, 4)]),
    ],
)
def test_an_operation_and_its_gradients_are_those_of_the_plain_form(operation, function, shapes):
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(random.normal(size=shape)) for shape in shapes]
        with ops.plain(operation):
            expected, plain_pull_back = jax.vjp(function, *arguments)
            plain_program = str(jax.make_jaxpr(lambda *x: function(*x))(*arguments))
        actual, pull_back = jax.vjp(function, *arguments)
        program = str(jax.make_jaxpr(lambda *x: function(*x))(*arguments))
        assert program != plain_program  # not the plain form twice
        dy = jax.tree.map(lambda y: jnp.asarray(random.normal(size=y.shape)), expected)
        jax.tree.map(
            lambda mine, theirs: np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13),
            (actual, pull_back(dy)),
            (expected, plain_pull_back(dy)),
        )


@on_cpu
def test_the_plain_form_of_dropout_is_that_of_jax():
    x, key = jnp.arange(1.0, 1001.0), jax.random.key(3)
    with ops.plain("dropout"):
        y = dropout(x, 0.25, key)
    kept = jax.random.bernoulli(key, 0.75, x.shape)
    np.testing.assert_allclose(y, np.where(kept, x / 0.75, 0), rtol=1e-6)
    assert np.any(y != dropout(x, 0.25, key))


@pytest.fixture(scope="module")
def masks():
    """100 masks of 256 x 256 elements at rate 0.1, true where kept, from 100 keys."""
    keys = jax.random.split(jax.random.key(0), 100)
    ones = jnp.ones((256, 256))
    out = np.asarray(jax.jit(jax.vmap(lambda key: dropout(ones, 0.1, key)))(keys))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.9], rtol=1e-6)
    return out.reshape(100, -1) > 0


def test_dropout_drops_at_its_rate_in_every_mask(masks):
    deviations = (masks.mean(1) - 0.9) / np.sqrt(0.09 / masks.shape[1])
    assert 0.75 < deviations.std() < 1.25  # neither less random nor more even than chance
    assert abs(deviations).max() < 4.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 4096])
def test_dropout_of_neighbors_is_independent(masks, lag):
    centred = (masks - 0.9) / 0.3
    products = (centred[:, lag:] * centred[:, :-lag]).mean(1) * np.sqrt(masks.shape[1] - lag)
    assert abs(products.mean()) < 4.5 / np.sqrt(len(masks))
    assert 0.75 < products.std() < 1.25


def test_dropout_of_two_keys_is_independent(masks):
    centred = (masks - 0.9) / 0.3
    products = (centred[1:] * centred[:-1]).mean(1) * np.sqrt(masks.shape[1])
    assert abs(products.mean()) < 4.5 / np.sqrt(len(products))
    assert abs(products).max() < 4.5


def test_dropout_gradient_goes_where_values_go():
    x, key = jnp.linspace(1.0, 2.0, 50), jax.random.key(1)
    kept = dropout(x, 0.5, key) != 0
    np.testing.assert_allclose(
        jax.grad(lambda x: dropout(x, 0.5, key).sum())(x), np.where(kept, 2.0, 0.0), rtol=1e-6
    )
