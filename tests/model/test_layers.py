"""Matmuls with hand-written gradients against JAX's own; dropout against what chance allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.model.dropout import dropout
from mmrec_jax.model.linear import add_bias, attend, matmul, similarities


def einsum(equation):
    return lambda a, b: jnp.einsum(equation, a, b)


def softmax_of_visible(logits, v):
    weights = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    return jnp.einsum("bhij,bhjk->bhik", weights, v)


# What is tested, the same in JAX's own operations, and the shapes of both factors.
OPERATIONS = {
    "wide result": (matmul, einsum("btm,mn->btn"), (2, 6, 3), (3, 5)),
    "narrow result": (matmul, einsum("btm,mn->btn"), (2, 6, 5), (5, 3)),
    "bias": (add_bias, jnp.add, (2, 6, 5), (5,)),
    "similarities": (similarities, einsum("bhik,bhjk->bhij"), (2, 3, 4, 5), (2, 3, 7, 5)),
    "attend": (attend, softmax_of_visible, (2, 3, 4, 7), (2, 3, 7, 5)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_and_their_gradients_are_those_of_jax(name):
    operation, reference, *shapes = OPERATIONS[name]
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        a, b = (jnp.asarray(random.normal(size=shape)) for shape in shapes)
        if operation is attend:  # a query sees only some tokens
            a = jnp.where(jnp.arange(7) <= jnp.arange(4)[:, None] + 1, a, -jnp.inf)
        expected, pull_back = jax.vjp(reference, a, b)
        actual, custom_pull_back = jax.vjp(operation, a, b)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
        dy = jnp.asarray(random.normal(size=expected.shape))
        for mine, theirs in zip(custom_pull_back(dy), pull_back(dy), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_similarities_are_float32_and_their_gradients_of_the_dtype_of_the_factors():
    q, k = jnp.ones((2, 4, 5), jnp.bfloat16), jnp.ones((2, 3, 5), jnp.bfloat16)
    y, pull_back = jax.vjp(similarities, q, k)
    assert y.dtype == jnp.float32
    assert [gradient.dtype for gradient in pull_back(y)] == [jnp.bfloat16] * 2


def test_attention_reads_in_the_dtype_of_the_values():
    logits, v = jnp.ones((2, 4, 5), jnp.float32), jnp.ones((2, 5, 3), jnp.bfloat16)
    y, pull_back = jax.vjp(attend, logits, v)
    assert y.dtype == jnp.bfloat16
    assert [gradient.dtype for gradient in pull_back(y)] == [jnp.float32, jnp.bfloat16]


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
    assert 0.75 < deviations.std() < 1.25  # no less random than chance, and no more even
    assert abs(deviations).max() < 4.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 4096])
def test_dropout_of_neighbours_is_independent(masks, lag):
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
