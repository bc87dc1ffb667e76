"""Short- and long-term memory: against the oracle, complete against split sequences, and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import oracle
from helpers import (
    documents_with_starts,
    forward,
    graph_of,
    initial_params,
    random_params,
    random_tokens,
    small_config,
    widen,
)
from mmrec_jax.model.bank import Saliency
from mmrec_jax.model.lm import init_state
from mmrec_jax.model.memory import MemoryState, Segments
from mmrec_jax.model.memory_sequence import read_memories

TIME = 32
TEXTS = {
    "one document": lambda: (random_tokens(2, TIME), documents_with_starts(TIME, (), ())),
    "documents": lambda: (
        random_tokens(2, TIME, seed=1),
        documents_with_starts(TIME, (13,), (4, 16, 17)),
    ),
    "few tokens, so equal saliencies": lambda: (
        random_tokens(2, TIME, vocab=3, seed=2),
        documents_with_starts(TIME, (), (8,)),
    ),
    "a document id that comes back": lambda: (
        random_tokens(2, TIME, seed=3),
        np.repeat(np.array([[5, 2, 5, 5], [1, 0, 1, 7]], np.int32), TIME // 4, axis=1),
    ),
}
CONFIGS = {
    "S = 2C": {},
    "no long-term memory": {"long_term": 0},
    "no short-term memory": {"short_term": 0},
    "four heads, no shifted keys": {"num_heads": 4, "shifted_keys": False, "short_term": 4},
    "nothing is evicted": {"long_term": TIME, "short_term": 4, "use_dpg": False},
}
# Every text with the first config; the other configs need fewer.
CASES = [("S = 2C", text) for text in TEXTS]
CASES += [(config, text) for config in list(CONFIGS)[1:] for text in list(TEXTS)[1:3]]


@pytest.mark.parametrize(("config", "text"), CASES)
def test_float64_logits_equal_oracle(config, text):
    config = small_config(dtype="float64", **CONFIGS[config])
    tokens, documents = TEXTS[text]()
    with jax.enable_x64(True):
        params = random_params(config)
        logits = np.asarray(forward(config)(params, tokens, documents).logits)
    expected, _ = oracle.run_model(params, config, tokens, documents)
    assert logits.dtype == np.float64
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("text", TEXTS)
def test_float32_logits_equal_oracle(text):
    config = small_config()
    params = random_params(config)
    tokens, documents = TEXTS[text]()
    logits = forward(config, optimized=True)(params, tokens, documents).logits
    expected, _ = oracle.run_model(widen(params), config, tokens, documents)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def split_read(config, params, tokens, documents, lengths):
    """The logits and last state of successive calls that read these numbers of tokens."""
    state, logits, done = init_state(config, len(tokens)), [], 0
    for length in lengths:
        part = slice(done, done + length)
        output = forward(config, optimized=True)(params, tokens[:, part], documents[:, part], state)
        state, done = output.state, done + length
        logits.append(output.logits)
    assert done == tokens.shape[1]
    return np.concatenate(logits, axis=1), state


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("lengths", [(16, 16), (4,) * 8, (16, 4, 4, 4, 4)], ids=str)
def test_whole_sequence_equals_parts_with_carried_state(text, lengths):
    config = small_config()
    params = random_params(config)
    tokens, documents = TEXTS[text]()
    whole = forward(config, optimized=True)(params, tokens, documents)
    logits, state = split_read(config, params, tokens, documents, lengths)
    np.testing.assert_allclose(logits, whole.logits, rtol=0, atol=2e-5)
    for layer, whole_layer in zip(state.layers, whole.state.layers, strict=True):
        np.testing.assert_allclose(layer.h, whole_layer.h, rtol=0, atol=2e-5)
        np.testing.assert_allclose(
            layer.memory.long_s.s, whole_layer.memory.long_s.s, rtol=0, atol=2e-5
        )
        filled = np.isfinite(whole_layer.memory.long_s.s)
        for name in ("long_k", "long_v"):
            np.testing.assert_allclose(
                getattr(layer.memory, name)[filled],
                getattr(whole_layer.memory, name)[filled],
                rtol=0,
                atol=2e-5,
            )


def test_state_does_not_grow():
    config = small_config()
    params = random_params(config)
    tokens, documents = TEXTS["documents"]()
    _, state = split_read(config, params, tokens, documents, (16, 16))
    empty = init_state(config, len(tokens))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, empty)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, empty)


SLOTS, SHORT, CHUNK, HEADS = 5, 8, 4, 2


@jax.jit
def bank_positions(s, fading, document, content=None):
    """Positions in the bank after reading a text in two calls.

    Each key is its own position, so all have one direction. Values are at right angles to those of
    other contents [T]; none are alike if it is not given.
    """
    batch, heads, time = s.shape
    position = jnp.broadcast_to(jnp.arange(time, dtype=s.dtype)[:, None], (*s.shape, time))
    value = jnp.eye(time)[jnp.arange(time) if content is None else content]
    value = jnp.broadcast_to(value, position.shape)
    start = jnp.diff(document, axis=1, prepend=-1) != 0
    number = jnp.cumsum(start, axis=1, dtype=jnp.int32)
    sizes = {"chunk_len": CHUNK, "short_term": SHORT, "long_term": SLOTS}
    config = small_config(dim=4, **sizes, oldest_age=16)
    near, long = (batch, heads, SHORT + CHUNK), (batch, heads, SLOTS)
    state = MemoryState(
        near_k=jnp.zeros((*near, time)),
        near_v=jnp.zeros((*near, time)),
        near_s=Saliency(jnp.full(near, -jnp.inf), jnp.zeros(near)),
        long_k=jnp.zeros((*long, time)),
        long_v=jnp.zeros((*long, time)),
        long_s=Saliency(jnp.full(long, -jnp.inf), jnp.zeros(long)),
        long_distance=jnp.zeros(long, jnp.int32),
    )
    short = jnp.full((batch, SHORT), -1)
    for part in (slice(0, time // 2), slice(time // 2, time)):
        segments = Segments(start=start[:, part], tokens=number[:, part], short=short)
        k, v = position[:, :, part], value[:, :, part]
        saliency = Saliency(s[:, :, part], fading[:, :, part])
        state = read_memories(k, k, v, saliency, segments, state, config).state
        short = jnp.concatenate([short, number[:, part]], axis=1)[:, -SHORT:]
        # Documents are numbered from 0, the one in which the state ended.
        last = number[:, part.stop - 1 : part.stop]
        short = jnp.where(short == last, 0, -1)
        number -= last
    return jnp.where(state.long_s.s > -jnp.inf, state.long_k[..., 0], -1), state.long_s.s


def check_bank(s, document):
    """Saliencies that do not fade."""
    positions, saliency = bank_positions(s, np.zeros_like(s), document)
    time = s.shape[-1]
    for b, head in np.ndindex(s.shape[:2]):
        number = oracle.number_documents(document[b])
        candidates = [j for j in range(time - SHORT) if number[j] == number[-1]]
        expected = oracle.select(s[b, head], candidates, SLOTS)
        found = [int(j) for j in positions[b, head] if j >= 0]
        assert sorted(found) == sorted(expected)
        np.testing.assert_array_equal(
            sorted(x for x in saliency[b, head] if np.isfinite(x)), sorted(s[b, head][expected])
        )


@pytest.mark.parametrize("seed", range(8))
def test_bank_equals_a_sort_of_all_that_left_short_term_memory(seed):
    """Saliencies with many ties, documents that start anywhere."""
    rng = np.random.default_rng(seed)
    s = rng.integers(-2, 2, (2, HEADS, 48)).astype(np.float32)
    document = np.cumsum(rng.random((2, 48)) < 0.04, axis=1).astype(np.int32)
    check_bank(s, document)


def test_newer_of_equally_salient_tokens_wins():
    s = np.zeros((1, HEADS, 48), np.float32)
    s[0, 1, 3] = 1.0
    document = np.zeros((1, 48), np.int32)
    positions, _ = bank_positions(s, np.zeros_like(s), document)
    newest = list(range(48 - SHORT - SLOTS, 48 - SHORT))
    assert sorted(map(int, positions[0, 0])) == newest
    assert sorted(map(int, positions[0, 1])) == [3, *newest[1:]]


@pytest.mark.parametrize(("lambda_", "kept"), [(0.0, [0, 1, 2, 23, 24]), (2.0, range(20, 25))])
def test_tokens_that_fade_give_way_to_newer_ones(lambda_, kept):
    s = np.full((1, HEADS, 48), -50.0, np.float32)
    s[..., :3], s[..., 20:25] = 2.0, 0.0
    fading = np.zeros_like(s)
    fading[..., :3] = lambda_  # 2 - lambda log(1 + a), where a is 4 when the last of them leave
    positions, _ = bank_positions(s, fading, np.zeros((1, 48), np.int32))
    assert all(sorted(map(int, head)) == [*kept] for head in positions[0])


def test_bank_keeps_one_of_the_tokens_that_say_the_same():
    s = np.zeros((1, HEADS, 48), np.float32)
    s[0, 1, 10] = 9.0
    content = np.arange(48) % 3

    def kept(document):
        positions, _ = bank_positions(s, np.zeros_like(s), document, content)
        return [sorted(map(int, head)) for head in positions[0]]

    # The newest, unless an older one is more salient. The key of token 0 is zero, so like no other.
    assert kept(np.zeros((1, 48), np.int32)) == [[-1, 0, 37, 38, 39], [-1, 0, 10, 38, 39]]
    # Another document has said nothing of it.
    assert kept(documents_with_starts(48, (38,))) == [[-1, -1, -1, 38, 39]] * 2


def test_bank_forgets_a_document_that_has_ended():
    s = np.zeros((1, HEADS, 48), np.float32)
    s[..., :20] = 9.0
    for first, left in ((20, 5), (38, 2), (40, 0)):
        document = documents_with_starts(48, (first,))
        s[..., 38:] = -9.0
        positions, _ = bank_positions(s, np.zeros_like(s), document)
        assert np.all(np.sum(positions >= 0, axis=-1) == left)
        assert np.all((positions >= first) | (positions == -1))
        check_bank(s, document)


def shapes_inside(jaxpr):
    """The shapes of all intermediates of a jaxpr, loops and custom gradients included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for parameter in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from shapes_inside(inner)


def test_shapes_inside_looks_into_loops():
    def quadratic(x):
        return jax.lax.scan(lambda c, y: (c + jnp.sum(x[:, None] * x) * y, None), 0.0, x)[0]

    jaxpr = jax.make_jaxpr(jax.jit(quadratic))(jnp.ones(61))
    assert (61, 61) in set(shapes_inside(jaxpr.jaxpr))


@pytest.mark.parametrize("with_gradient", [False, True])
def test_no_intermediate_is_quadratic_in_time(with_gradient):
    time = 8 * 61
    config = small_config(chunk_len=8, short_term=16, long_term=8, saliency_queries=4)
    graph = graph_of(config)

    def loss(params, tokens, documents):
        output = nnx.merge(graph, params)(tokens, documents, None, jax.random.key(0))
        return jnp.sum(output.logits) + output.aux.saliency + output.aux.uboo

    function = jax.grad(loss) if with_gradient else loss
    text = random_tokens(1, time), documents_with_starts(time, ())
    jaxpr = jax.make_jaxpr(function)(initial_params(config), *text)
    shapes = set(shapes_inside(jaxpr.jaxpr))
    assert any(time in shape for shape in shapes)
    assert [shape for shape in shapes if shape.count(time) > 1] == []
    assert [shape for shape in shapes if np.prod(shape) >= time**2] == []
