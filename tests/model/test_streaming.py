"""The model's forms give the same logits and states: sequences, `extend`, and single tokens.

Cut points, document starts and batch sizes are drawn at random, but few shapes are compiled.
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

import helpers
import oracle
from helpers import documents_with_starts
from mmrec_jax.model.lm import init_state
from mmrec_jax.model.streaming import extend

CONFIG = helpers.small_config(vocab_size=2_700)
TIME = 40  # tokens of a text: complete chunks, so that the form for sequences can read it, too
# Lengths of parts by batch size: below a chunk of 4, above, and complete chunks. Each is compiled.
PARTS = {1: (1, 3, 7), 2: (1, 16)}
CLOSE = {"rtol": 0, "atol": 1e-5}
PROPERTY = settings(max_examples=20, deadline=None, database=None)


def parameters(tied=False):
    """Random parameters; if `tied`, all tokens are equally salient, to the last bit."""
    params = helpers.random_params(CONFIG)
    embedding = np.random.default_rng(1).normal(0, 0.1, (CONFIG.vocab_size, CONFIG.dim))
    params["embedding"]["embedding"] = embedding.astype(np.float32)
    p = slice(4 * CONFIG.dim, 5 * CONFIG.dim)  # of W_fused's outputs
    for block in params["blocks"].values() if tied else ():
        block["W_fused"]["kernel"][:, p], block["W_fused"]["bias"][p] = 0, 0.5
    return params


PARAMS, TIED = parameters(), parameters(tied=True)


def distinct_tokens(batch, time, seed=0, vocab=CONFIG.vocab_size):
    """Distinct tokens, as far as there are enough.

    A repeated token has the same saliency in layer 0, but each form rounds it differently.
    """
    ids = np.tile(np.resize(np.arange(vocab, dtype=np.int32), max(vocab, time)), (batch, 1))
    return np.random.default_rng(seed).permuted(ids, axis=1)[:, :time]


@functools.cache
def single_reader(config):
    """Compiles `step` for each token of a text: returns logits and the states after every token."""

    @functools.partial(jax.jit, compiler_options=helpers.UNOPTIMIZED)
    def read(params, state, tokens, documents):
        model = nnx.merge(helpers.graph_of(config), params)

        def body(state, token):
            output = model.step(*token, state)
            return output.state, (output.logits, output.state)

        _, (logits, states) = jax.lax.scan(body, state, (tokens.T, documents.T))
        return jnp.moveaxis(logits, 0, 1), states

    return read


@functools.partial(jax.jit, compiler_options=helpers.UNOPTIMIZED)
def extend_jit(params, state, tokens, documents=None, lengths=None):
    return extend(nnx.merge(helpers.graph_of(CONFIG), params), state, tokens, documents, lengths)


def whole(state, tokens, documents, params=PARAMS):
    output = helpers.forward(CONFIG)(params, tokens, documents, state)
    return output.logits, output.state


def singly(state, tokens, documents, params=PARAMS):
    return jax.tree.map(np.asarray, single_reader(CONFIG)(params, state, tokens, documents))


def in_parts(state, tokens, documents, parts, params=PARAMS):
    """Logits, and the state after each part."""
    logits, states = [], []
    for end, length in zip(itertools.accumulate(parts), parts, strict=True):
        part, lengths = slice(end - length, end), np.full(len(tokens), length, np.int32)
        new, state = extend_jit(params, state, tokens[:, part], documents[:, part], lengths)
        logits, states = [*logits, new], [*states, state]
    return np.concatenate(logits, axis=1), states


def after(states, count):  # of the states after every token
    return jax.tree.map(lambda x: x[count - 1], states)


def lane(tree, index):  # as a batch of one text
    return jax.tree.map(lambda x: np.asarray(x)[index : index + 1], tree)


def check_states(actual, expected):
    """Equal up to rounding, and empty in the same slots, whose keys and values do not count."""
    actual, expected = jax.tree.map(np.asarray, (actual, expected))
    for name in ("document", "place", "live"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
    for layer, other in zip(actual.layers, expected.layers, strict=True):
        np.testing.assert_allclose(layer.h, other.h, **CLOSE)
        np.testing.assert_allclose(layer.last_k, other.last_k, **CLOSE)
        np.testing.assert_allclose(layer.last_evidence, other.last_evidence, **CLOSE)
        memory, other = layer.memory._asdict(), other.memory._asdict()
        for name in memory:
            s = other[f"{name.partition('_')[0]}_s"].s
            for field, expected in zip(
                *map(jax.tree.leaves, (memory[name], other[name])), strict=True
            ):
                cells = ... if expected is s else np.isfinite(s)
                np.testing.assert_allclose(field[cells], expected[cells], **CLOSE)


def check_forms(state, tokens, documents, parts, params=PARAMS):
    """All forms agree from this state on: in logits, and in states wherever two forms have one."""
    expected, last = whole(state, tokens, documents, params)
    single_logits, single_states = singly(state, tokens, documents, params)
    logits, states = in_parts(state, tokens, documents, parts, params)
    assert 0.5 < np.abs(expected).max() < 5
    np.testing.assert_allclose(single_logits, expected, **CLOSE)
    np.testing.assert_allclose(logits, expected, **CLOSE)
    for end, new in zip(itertools.accumulate(parts), states, strict=True):
        check_states(new, after(single_states, end))
    check_states(states[-1], last)
    return expected


@st.composite
def splits(draw, batch):
    """Lengths of the parts of a text; cut points may be anywhere."""
    parts = []
    while left := TIME - sum(parts):
        parts.append(draw(st.sampled_from([part for part in PARTS[batch] if part <= left])))
    return draw(st.permutations(parts))


@st.composite
def texts(draw, batch):
    """Tokens, and documents that start anywhere; ids may recur."""
    starts = st.sets(st.integers(0, TIME - 1), max_size=4)
    documents = documents_with_starts(TIME, *(draw(starts) for _ in range(batch)))
    vocab = draw(st.sampled_from((5, 20, CONFIG.vocab_size)))
    return distinct_tokens(batch, TIME, draw(st.integers(0, 2**16)), vocab), documents % 3


@PROPERTY
@given(st.data())
def test_any_split_equals_single_tokens_and_the_whole(data):
    batch, tied = data.draw(st.sampled_from(list(PARTS)), "batch"), data.draw(st.booleans(), "tied")
    text, parts = data.draw(texts(batch)), data.draw(splits(batch))
    check_forms(init_state(CONFIG, batch), *text, parts, TIED if tied else PARAMS)


@PROPERTY
@given(st.data())
def test_texts_of_different_lengths_are_read_as_if_alone(data):
    """Reads twice, so that the second time they are at different positions in their chunks."""
    tokens, documents = data.draw(texts(3))
    alone = [singly(init_state(CONFIG, 1), *lane((tokens, documents), i)) for i in range(3)]
    state, done = init_state(CONFIG, 3), np.zeros(3, np.int32)
    rows, columns = np.arange(3)[:, None], np.arange(16)
    for _ in range(2):
        lengths = np.array(data.draw(st.tuples(*[st.integers(0, 16)] * 3)), np.int32)
        positions, inside = done[:, None] + columns, columns < lengths[:, None]
        text = [np.where(inside, x[rows, positions], 9) for x in (tokens, documents)]
        logits, new = extend_jit(PARAMS, state, *text, lengths)
        for i, (expected, states) in enumerate(alone):
            end = done[i] + lengths[i]
            np.testing.assert_allclose(logits[i, : lengths[i]], expected[0, done[i] : end], **CLOSE)
            if lengths[i]:
                check_states(lane(new, i), after(states, end))
            else:
                jax.tree.map(np.testing.assert_array_equal, lane(new, i), lane(state, i))
        state, done = new, done + lengths


PREFIX = 10_000
LONG = np.resize(distinct_tokens(1, CONFIG.vocab_size), (1, PREFIX + TIME))
LONG_DOCUMENTS = documents_with_starts(PREFIX + TIME, (17, 2_514, 5_000, 7_401))
END = LONG[:, PREFIX:], LONG_DOCUMENTS[:, PREFIX:]
END_PARTS = (3, 7, 1, 7, 3, 3, 7, 1, 1, 7)


@functools.cache
def prefix_state(piece=2_000):
    """The state after a long text in several documents."""
    state = init_state(CONFIG, 1)
    for start in range(0, PREFIX, piece):
        part = slice(start, start + piece)
        _, state = whole(state, LONG[:, part], LONG_DOCUMENTS[:, part])
    return state


def test_forms_agree_after_a_long_prefix():
    check_states(prefix_state(), prefix_state(TIME))
    check_forms(prefix_state(), *END, END_PARTS)
    check_forms(prefix_state(), END[0], END[1] + documents_with_starts(TIME, (13,)), END_PARTS)


def test_logits_do_not_depend_on_the_absolute_position():
    """A new document depends on what precedes it only through its position in the chunk."""
    text = distinct_tokens(1, TIME, seed=7), np.full((1, TIME), 9, np.int32)
    expected = whole(empty := init_state(CONFIG, 1), *text)[0]
    np.testing.assert_allclose(check_forms(prefix_state(), *text, END_PARTS), expected, **CLOSE)
    late, early = (in_parts(x, *END, END_PARTS)[1][0] for x in (prefix_state(), empty))
    np.testing.assert_allclose(singly(late, *text)[0], singly(early, *text)[0], **CLOSE)


@pytest.mark.parametrize("changes", [{}, {"long_term": 0}, {"short_term": 0}], ids=str)
def test_float64_single_tokens_equal_oracle(changes):
    """Tokens recur, so their saliencies tie; within one form they are equal."""
    config = helpers.small_config(dtype="float64", **changes)
    tokens = helpers.random_tokens(3, TIME, vocab=6)
    documents = documents_with_starts(TIME, (), (4, 13), (16, 17)) % 2
    with jax.enable_x64(True):
        params = helpers.random_params(config)
        logits, _ = single_reader(config)(params, init_state(config, 3), tokens, documents)
    expected, _ = oracle.run_model(params, config, tokens, documents)
    assert logits.dtype == np.float64
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)


def test_the_state_does_not_grow():
    def form(state):
        return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.nbytes), state)

    empty = init_state(CONFIG, 1)
    for state in (empty, prefix_state()):
        singles = singly(state, *END)[1]
        states = [state, *in_parts(state, *END, END_PARTS)[1]]
        states += [after(singles, count) for count in range(1, TIME + 1)]
        assert all(form(new) == form(empty) for new in states)


def test_without_documents_the_document_of_each_state_continues():
    """For an empty state, that is document 0."""
    done, tokens = np.array([7, 16, 0], np.int32), distinct_tokens(3, TIME, seed=8)
    documents = np.repeat(np.array([[5], [2], [0]], np.int32), TIME, axis=1)
    expected, states = singly(init_state(CONFIG, 3), tokens, documents)
    _, state = extend_jit(PARAMS, init_state(CONFIG, 3), tokens[:, :16], documents[:, :16], done)
    rest = done[:, None] + np.arange(3)
    logits, state = extend_jit(PARAMS, state, np.take_along_axis(tokens, rest, 1))
    for i, count in enumerate(done):
        np.testing.assert_allclose(logits[i], expected[i, count : count + 3], **CLOSE)
        check_states(lane(state, i), lane(after(states, count + 3), i))


def test_forms_agree_in_bfloat16():
    # Tokens repeat, and no distance is beyond those that are told apart.
    config = helpers.small_config(dtype="bfloat16", oldest_age=64)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (4, TIME), np.int32)
    documents, state = np.zeros_like(tokens), init_state(config, 4)
    params = helpers.random_params(config)
    output = helpers.forward(config)(params, tokens, documents, state)
    logits, states = single_reader(config)(params, state, tokens, documents)
    assert np.linalg.norm(logits - output.logits) < 0.02 * np.linalg.norm(output.logits)
    for one, other in zip(after(states, TIME).layers, output.state.layers, strict=True):
        np.testing.assert_array_equal(one.memory.long_distance, other.memory.long_distance)
