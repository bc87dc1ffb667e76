"""The model's forms give the same logits and states: whole sequences, `extend`, and single tokens.

Cut points, document starts and batch sizes are drawn; what is compiled is a few shapes only.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from helpers import (
    UNOPTIMIZED,
    VOCAB,
    documents_with_starts,
    forward,
    graph_of,
    random_params,
    random_tokens,
    small_config,
)
from mmrec_jax.model.lm import init_state
from mmrec_jax.model.streaming import extend

CONFIG = small_config()
PARAMS = random_params(CONFIG)
TIME = 32  # of a text: a whole number of chunks, so that the form for whole sequences reads it too
PARTS = (1, 3, 7, 16)  # shorter than a chunk of 4, longer, and whole chunks
CLOSE = {"rtol": 0, "atol": 1e-5}
PROPERTY = settings(max_examples=40, deadline=None, database=None)

whole = forward(CONFIG, optimized=True)


@functools.cache
def single_reader(config, compiler_options=None):
    """Compiled: `step` for each token of a text. Gives logits and the states after every token."""

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def read(params, state, tokens, documents):
        model = nnx.merge(graph_of(config), params)

        def body(state, token):
            output = model.step(*token, state)
            return output.state, (output.logits, output.state)

        _, (logits, states) = jax.lax.scan(body, state, (tokens.T, documents.T))
        return jnp.moveaxis(logits, 0, 1), states

    return read


@functools.partial(jax.jit)
def extend_jit(params, state, tokens, documents=None, lengths=None):
    return extend(nnx.merge(graph_of(CONFIG), params), state, tokens, documents, lengths)


def singly(state, tokens, documents):
    logits, states = single_reader(CONFIG)(PARAMS, state, tokens, documents)
    return np.asarray(logits), jax.tree.map(np.asarray, states)


def in_parts(state, tokens, documents, parts):
    """Logits, and the state after each part."""
    logits, states = [], []
    for end, length in zip(itertools.accumulate(parts), parts, strict=True):
        part = slice(end - length, end)
        new, state = extend_jit(PARAMS, state, tokens[:, part], documents[:, part])
        logits.append(new)
        states.append(state)
    return np.concatenate(logits, axis=1), states


def after(states, count):
    """Of the states after every token, the one after so many."""
    return jax.tree.map(lambda x: x[count - 1], states)


def lane(tree, index):
    """A batch of one text."""
    return jax.tree.map(lambda x: x[index : index + 1], tree)


def check_states(actual, expected):
    """Equal but for the rounding of what is filled; what is empty is so in both."""
    for name in ("document", "place", "live"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
    for layer, other in zip(actual.layers, expected.layers, strict=True):
        np.testing.assert_allclose(layer.h, other.h, **CLOSE)
        np.testing.assert_allclose(layer.last_k, other.last_k, **CLOSE)
        for memory in ("near", "long"):
            k, v, s = (getattr(layer.memory, f"{memory}_{name}") for name in "kvs")
            other_k, other_v, other_s = (getattr(other.memory, f"{memory}_{n}") for n in "kvs")
            np.testing.assert_allclose(s, other_s, **CLOSE)  # -inf in the same slots
            filled = np.isfinite(other_s)
            np.testing.assert_allclose(k[filled], other_k[filled], **CLOSE)
            np.testing.assert_allclose(v[filled], other_v[filled], **CLOSE)


def check_identical(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@st.composite
def splits(draw, time=TIME):
    """Lengths of the parts of a text: cut points may be anywhere."""
    parts = []
    while left := time - sum(parts):
        parts.append(draw(st.sampled_from([part for part in PARTS if part <= left])))
    return draw(st.permutations(parts))


@st.composite
def texts(draw, batch):
    """Tokens, so few that saliencies tie, and documents that start anywhere; ids may come back."""
    seed = draw(st.integers(0, 2**16))
    vocab = draw(st.sampled_from((2, VOCAB)))
    starts = st.sets(st.integers(0, TIME - 1), max_size=4)
    documents = documents_with_starts(TIME, *(draw(starts) for _ in range(batch)))
    return random_tokens(batch, TIME, vocab, seed), documents % 3


@PROPERTY
@given(st.data())
def test_any_split_equals_single_tokens_and_the_whole(data):
    batch = data.draw(st.integers(1, 3))
    tokens, documents = data.draw(texts(batch))
    parts = data.draw(splits())
    empty = init_state(CONFIG, batch)
    logits, states = in_parts(empty, tokens, documents, parts)
    single_logits, single_states = singly(empty, tokens, documents)
    output = whole(PARAMS, tokens, documents)
    assert 0.5 < np.abs(output.logits).max() < 20
    np.testing.assert_allclose(single_logits, output.logits, **CLOSE)
    np.testing.assert_allclose(logits, output.logits, **CLOSE)
    for end, state in zip(itertools.accumulate(parts), states, strict=True):
        check_states(state, after(single_states, end))
    check_states(states[-1], output.state)


@PROPERTY
@given(st.data())
def test_texts_of_different_lengths_are_read_as_if_alone(data):
    """Twice, so that the second time they stand at different places in their chunks."""
    tokens, documents = data.draw(texts(3))
    alone = [singly(init_state(CONFIG, 1), *lane((tokens, documents), i)) for i in range(3)]
    state, done = init_state(CONFIG, 3), np.zeros(3, np.int32)
    rows, padding = np.arange(3)[:, None], np.arange(16)
    for _ in range(2):
        lengths = np.array(data.draw(st.tuples(*[st.integers(0, 16)] * 3)), np.int32)
        positions = np.minimum(done[:, None] + padding, TIME - 1)
        beyond = padding >= lengths[:, None]
        logits, new = extend_jit(
            PARAMS,
            state,
            np.where(beyond, 1, tokens[rows, positions]),
            np.where(beyond, 9, documents[rows, positions]),
            lengths,
        )
        for i, (expected, states) in enumerate(alone):
            read = expected[0, done[i] : done[i] + lengths[i]]
            np.testing.assert_allclose(logits[i, : lengths[i]], read, **CLOSE)
            if lengths[i] == 0:
                check_identical(lane(new, i), lane(state, i))
            else:
                check_states(lane(new, i), after(states, done[i] + lengths[i]))
        state, done = new, done + lengths


PREFIX = 10_000


@functools.cache
def prefix_state(length, piece):
    """The state after a long text in several documents, and its last logits."""
    tokens, documents = random_tokens(1, PREFIX, seed=5), documents_with_starts(PREFIX, (17, 4321))
    state = None
    for start in range(0, length, piece):
        part = slice(start, min(start + piece, length))
        output = whole(PARAMS, tokens[:, part], documents[:, part], state)
        state = output.state
    return state, output.logits[:, -1]


def test_a_long_prefix_leaves_the_same_state_whatever_the_split():
    state, last = prefix_state(PREFIX, 2_000)
    other, other_last = prefix_state(PREFIX, 400)
    np.testing.assert_allclose(last, other_last, **CLOSE)
    check_states(state, other)


@pytest.mark.parametrize("starts", [(), (13,)], ids=str)
def test_forms_agree_after_a_long_prefix(starts):
    state, _ = prefix_state(PREFIX, 2_000)
    tokens = random_tokens(1, TIME, seed=6)
    documents = 2 + documents_with_starts(TIME, starts)
    output = whole(PARAMS, tokens, documents, state)
    single_logits, single_states = singly(state, tokens, documents)
    logits, states = in_parts(state, tokens, documents, (3, 7, 1, 16, 1, 1, 3))
    np.testing.assert_allclose(single_logits, output.logits, **CLOSE)
    np.testing.assert_allclose(logits, output.logits, **CLOSE)
    check_states(after(single_states, TIME), output.state)
    check_states(states[-1], output.state)


def test_logits_do_not_depend_on_the_absolute_position():
    """A new document after 10,000 tokens is read as if it were the first text."""
    state, _ = prefix_state(PREFIX, 2_000)
    tokens, documents = random_tokens(1, TIME, seed=7), np.full((1, TIME), 3, np.int32)
    parts = (7, 3, 16, 3, 3)
    expected = whole(PARAMS, tokens, documents).logits
    np.testing.assert_allclose(whole(PARAMS, tokens, documents, state).logits, expected, **CLOSE)
    np.testing.assert_allclose(singly(state, tokens, documents)[0], expected, **CLOSE)
    np.testing.assert_allclose(in_parts(state, tokens, documents, parts)[0], expected, **CLOSE)


ORACLE_CONFIGS = {
    "S = 2C": {},
    "no long-term memory": {"long_term": 0},
    "no short-term memory, no shifted keys": {"short_term": 0, "shifted_keys": False},
}


@pytest.mark.parametrize("changes", ORACLE_CONFIGS.values(), ids=ORACLE_CONFIGS)
def test_float64_single_tokens_equal_oracle(changes):
    config = small_config(dtype="float64", **changes)
    tokens = np.concatenate([random_tokens(1, TIME), random_tokens(1, TIME, vocab=3, seed=2)])
    documents = documents_with_starts(TIME, (4, 13), (16, 17)) % 2
    with jax.enable_x64(True):
        params = random_params(config)
        read = single_reader(config, tuple(UNOPTIMIZED.items()) and None)
        logits = np.asarray(read(params, init_state(config, 2), tokens, documents)[0])
    expected, _ = oracle.run_model(params, config, tokens, documents)
    assert logits.dtype == np.float64
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)


def test_the_state_does_not_grow():
    def form(state):
        return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.nbytes), state)

    tokens, documents = random_tokens(1, TIME), documents_with_starts(TIME, (9,))
    empty = init_state(CONFIG, 1)
    _, states = singly(empty, tokens, documents)
    _, parts = in_parts(empty, tokens, documents, (1, 3, 7, 16))
    later = [after(states, count) for count in range(1, TIME + 1)]
    for state in (*later, *parts, prefix_state(PREFIX, 2_000)[0]):
        assert form(state) == form(empty)


@pytest.mark.parametrize("document", [None, 5])
def test_without_documents_the_document_of_the_state_goes_on(document):
    tokens = random_tokens(1, TIME, seed=8)
    state, part = init_state(CONFIG, 1), tokens[:, 16:]
    if document is not None:
        before = np.full((1, 16), document, np.int32)
        state = extend_jit(PARAMS, state, tokens[:, :16], before)[1]
    same = extend_jit(PARAMS, state, part, np.full((1, 16), document or 0, np.int32))
    check_identical(extend_jit(PARAMS, state, part), same)
