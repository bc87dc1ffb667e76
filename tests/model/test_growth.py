"""Growth changes no logit, in any form and from any memory, and all new parameters can learn."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import helpers
from mmrec_jax.errors import UserError
from mmrec_jax.model.growth import check_growth, grow, grow_moments, layer_places
from mmrec_jax.model.lm import init_state
from mmrec_jax.model.params import init_params
from mmrec_jax.model.streaming import extend

# The ladder with D, K, H and L in their ratios: (D, L, H, DPG, UBOO).
TINY, MINI, SMALL, BASE, MEDIUM, LARGE, B7 = (
    {"dim": dim, "num_layers": layers, "num_heads": heads, "use_dpg": dpg, "use_uboo": uboo}
    for dim, layers, heads, dpg, uboo in (
        (16, 2, 4, False, False),
        (32, 3, 4, False, False),
        (64, 4, 8, False, False),
        (128, 6, 8, False, False),
        (128, 4, 8, True, False),
        (192, 5, 12, True, True),
        (256, 6, 16, True, True),
    )
)
STEPS = [(TINY, MINI), (MINI, SMALL), (SMALL, BASE), (MEDIUM, LARGE), (LARGE, B7)]
# base to medium switches DPG on: D 1,024 to 2,048, 8 heads to 16
STEPS.append(({**SMALL, "num_layers": 3}, {**MEDIUM, "num_heads": 16, "num_layers": 4}))


def shape(vocab_size=helpers.VOCAB, **values):
    return helpers.small_config(dtype="float64", vocab_size=vocab_size, **values)


@functools.cache
def trained(config):
    """Parameters after twenty steps of Adam on repetitive texts."""
    params = init_params(config, jax.random.key(0))
    tokens = np.tile(helpers.random_tokens(4, 8), 3)
    weights, cotangent = (1.0, 0.3, 0.1), np.zeros((4, 24, helpers.VOCAB))
    optimizer = optax.adam(0.02)

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    gradient = helpers.gradient(config)
    for _ in range(20):
        grads = gradient(params, tokens, np.zeros_like(tokens), weights, cotangent)
        params, state = update(params, state, grads)
    return params


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


# The ladder itself takes minutes to compile; the first case is its first step with fewer layers.
CASES = [pytest.param({**TINY, "num_layers": 1}, {**MINI, "num_layers": 2}, "top", id="quick")] + [
    pytest.param(*step, placement, marks=pytest.mark.slow)
    for step in STEPS
    for placement in ("top", "spread")
]


@pytest.mark.parametrize(("small", "large", "placement"), CASES)
def test_no_logit_changes_in_any_form(small, large, placement):
    old, new = shape(**small), shape(vocab_size=helpers.VOCAB + 5, **large)
    before = trained(old)
    after = grow(before, old, new, jax.random.key(1), placement)
    tokens = helpers.random_tokens(2, 40)
    documents = helpers.documents_with_starts(40, [21], [])
    logits = []
    for config, params in ((old, before), (new, after)):
        forward = helpers.forward(config)
        first = forward(params, tokens[:, :20], documents[:, :20], init_state(config, 2))
        whole = forward(params, tokens[:, 20:], documents[:, 20:], first.state)
        model = nnx.merge(helpers.graph_of(config), params)
        step = jax.jit(lambda t, d, s, model=model: model.step(t, d, s))
        state, single = first.state, []
        for t in range(20, 40):
            output = step(tokens[:, t], documents[:, t], state)
            state = output.state
            single.append(output.logits)
        both = [first.logits, whole.logits, jnp.stack(single, axis=1)]
        logits.append([np.asarray(x[..., : helpers.VOCAB]) for x in both])
    for one, other in zip(*logits, strict=True):
        assert np.abs(one).max() > 1
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["top", "spread"])
def test_every_new_parameter_moves_within_ten_steps(placement):
    old, new = shape(**TINY), shape(**{**MINI, "use_dpg": True, "use_uboo": True})
    start = grow(trained(old), old, new, jax.random.key(1), placement)
    gradient, params = helpers.gradient(new), start
    tokens = helpers.random_tokens(4, 24)
    documents = np.zeros_like(tokens)
    weights, cotangent = (1.0, 0.3, 0.1), np.zeros((4, 24, helpers.VOCAB))
    for _ in range(10):
        grads = gradient(params, tokens, documents, weights, cotangent)
        params = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)
    moved = jax.tree.map(lambda x, y: np.asarray(x != y), params, start)
    for path, where in jax.tree_util.tree_flatten_with_path(moved)[0]:
        name = jax.tree_util.keystr(path)
        unused = set(range(helpers.VOCAB)) - set(tokens.ravel().tolist())
        assert not unused
        assert where.all(), f"{name}: {(~where).sum()} of {where.size} did not move"


@pytest.mark.slow
def test_growing_in_two_steps_or_with_fresh_keys_keeps_the_same_logits():
    """Old values are where they belong, because a second growth finds them."""
    sizes = [shape(**size) for size in (TINY, MINI, SMALL)]
    params = trained(sizes[0])
    for old, new in itertools.pairwise(sizes):
        params = grow(params, old, new, jax.random.key(2))
    tokens = helpers.random_tokens(1, 24)
    logits = [
        helpers.forward(config)(x, tokens, np.zeros_like(tokens)).logits
        for config, x in ((sizes[0], trained(sizes[0])), (sizes[-1], params))
    ]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-10)


def test_a_new_token_starts_as_the_mean_of_its_parents():
    old, new = shape(**TINY), shape(vocab_size=helpers.VOCAB + 4, **TINY)
    parents = [(3, 4), (helpers.VOCAB, 5), (), (0, 1, 2)]
    before = init_params(old, jax.random.key(0))
    after = np.asarray(
        grow(before, old, new, jax.random.key(0), parents=parents)["embedding"]["embedding"]
    )
    rows = np.asarray(before["embedding"]["embedding"])
    first = (rows[3] + rows[4]) / 2
    np.testing.assert_allclose(after[helpers.VOCAB], first, atol=1e-12)
    np.testing.assert_allclose(after[helpers.VOCAB + 1], (first + rows[5]) / 2, atol=1e-12)
    assert np.abs(after[helpers.VOCAB + 2]).min() > 0
    many, mean = after[helpers.VOCAB + 3], rows[:3].mean(axis=0)
    length = np.sqrt((rows[:3] ** 2).sum(axis=1)).mean()
    np.testing.assert_allclose(many, mean * length / np.sqrt((mean**2).sum()), atol=1e-12)


@pytest.mark.slow
def test_moments_are_those_of_the_gradients_of_what_was_kept():
    """Compares them with the gradients of the old and of the grown model for the same loss."""
    old, new = shape(**TINY), shape(**MINI)
    before = trained(old)
    after = grow(before, old, new, jax.random.key(1))
    tokens = helpers.random_tokens(2, 24)
    arguments = tokens, np.zeros_like(tokens), (1.0, 0.0, 0.0), np.zeros((2, 24, helpers.VOCAB))
    of_old = helpers.gradient(old)(before, *arguments)
    of_new = helpers.gradient(new)(after, *arguments)
    grown = grow_moments(of_old, old, new, power=1)
    squares = grow_moments(jax.tree.map(jnp.square, of_old), old, new, power=2)
    kept = jax.tree.map(
        lambda x: np.asarray(x != 0), grow_moments(jax.tree.map(jnp.ones_like, of_old), old, new, 1)
    )
    for mean, square, expected, where in zip(
        *map(jax.tree.leaves, (grown, squares, of_new, kept)), strict=True
    ):
        assert where.any() or expected.ndim
        np.testing.assert_allclose(np.asarray(mean)[where], np.asarray(expected)[where], atol=1e-10)
        np.testing.assert_allclose(
            np.asarray(square)[where], np.square(expected)[where], atol=1e-10
        )
        assert not np.asarray(mean)[~where].any()


def test_new_layers_are_on_top_or_spread_out():
    assert layer_places(4, 6, "top") == [0, 1, 2, 3]
    assert layer_places(4, 6, "spread") == [0, 1, 3, 4]
    assert layer_places(2, 5, "spread") == [0, 2]
    with pytest.raises(UserError, match="placement is 'below'"):
        layer_places(2, 5, "below")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10}, "cannot shrink: model.vocab_size is 20, and would be 10"),
        ({"dim": 12, "num_heads": 2}, "cannot shrink: model.head_dim is 8, and would be 6"),
        ({"num_layers": 1}, "cannot shrink: model.num_layers is 2"),
        ({"num_heads": 1}, "cannot shrink: model.num_heads is 2"),
        ({"dim": 24}, "head width K grows from 8 to 12: it must be a multiple"),
        ({"chunk_len": 6, "short_term": 12}, "model.chunk_len grows from 4 to 6: it must be a"),
        ({"use_dpg": False}, "model.use_dpg is on and cannot be switched off"),
        ({"dpg_rank": 2}, "cannot shrink: model.dpg_rank"),
        ({"mu": 0.2}, "model.mu is 0.1, and would be 0.2"),
        ({"shifted_keys": False}, "model.shifted_keys is True"),
        ({"long_term": 2}, "cannot shrink: model.long_term is 3"),
    ],
)
def test_what_shrinks_or_cannot_be_kept_is_refused(changes, message):
    old = helpers.small_config()
    with pytest.raises(UserError, match=message):
        check_growth(old, dataclasses.replace(old, **changes))


def test_larger_memories_are_allowed_and_reported():
    old = helpers.small_config()
    assert check_growth(old, old) == []
    (line,) = check_growth(old, dataclasses.replace(old, long_term=9))
    assert line == "model.long_term grows from 3 to 9: the model sees more"


@pytest.mark.slow
def test_an_empty_state_fits_the_larger_model():
    """States are not grown, so a grown model starts with an empty one."""
    config = shape(**MINI)
    params = grow(trained(shape(**TINY)), shape(**TINY), config, jax.random.key(0))
    model = nnx.merge(helpers.graph_of(config), params)
    tokens = helpers.random_tokens(1, 11)
    streamed, _ = jax.jit(lambda t, s: extend(model, s, t))(tokens, init_state(config, 1))
    whole = helpers.forward(config)(
        params, np.pad(tokens, ((0, 0), (0, 1))), np.zeros((1, 12), int)
    )
    np.testing.assert_allclose(streamed, whole.logits[:, :11], rtol=0, atol=1e-10)
