"""Carried memory: the order of windows, training and evaluation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import forward, graph_of, numbered, random_tokens
from mmrec_jax.data.batches import TextWindows, TrainingWindows, every_window, training_batches
from mmrec_jax.data.dataset import ArrayTokens, Split
from mmrec_jax.data.sources.text_files import stream_text
from mmrec_jax.data.tokenizers import CharTokenizer, document_tokens
from mmrec_jax.errors import UserError
from mmrec_jax.learning.evaluate import EvalTokens, evaluate, make_eval_step
from mmrec_jax.learning.step import init_train_state, make_train_step
from small_runs import config

PROPERTY = settings(max_examples=15, deadline=None, database=None)
LANES, WINDOW, WINDOWS = 4, 32, 3  # of the batches in the training tests


def small(**changes):
    plain = {"model__dropout": 0.0, "model__saliency_weight": 0.0, "train__carry_memory": True}
    return config(**{**plain, "train__batch_size": LANES, **changes})


@functools.cache
def some_params():
    """Far from the initial values, so that memory affects the loss."""
    cfg, rng = small(), np.random.default_rng(0)
    params = init_train_state(cfg, optax.sgd(0.0), jax.random.key(0)).params
    return jax.tree.map(lambda x: np.float32(x + 0.2 * rng.standard_normal(x.shape)), params)


def some_split(*lengths):
    """Documents of these lengths."""
    split = numbered(*lengths)
    tokens = random_tokens(1, sum(lengths), vocab=64)[0]
    return split._replace(tokens=split.tokens._replace(tokens=tokens))


def cross_entropies(logits, targets):
    logits = np.asarray(logits, np.float64)
    chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return np.log(np.exp(logits).sum(axis=-1)) - chosen


def check(actual, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5), actual, expected)


# --- lanes ---


@PROPERTY
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 6), st.integers(1, 5))
def test_every_lane_reads_its_own_stretch_in_order_once_per_epoch(lengths, seq_len, batch_size):
    lengths, size = [batch_size * seq_len + 1, *lengths], batch_size * seq_len
    split = numbered(*lengths)
    lanes, other = (TrainingWindows(split, batch_size, seq_len, 0, stretch=0) for _ in range(2))
    steps = lanes.steps_per_epoch
    backwards = [other[step] for step in reversed(range(3 * steps))][::-1]
    for epoch in range(3):
        batches = [lanes[epoch * steps + index] for index in range(steps)]
        jax.tree.map(np.testing.assert_array_equal, batches, backwards[epoch * steps :][:steps])
        fresh = np.stack([batch.fresh for batch in batches])
        np.testing.assert_array_equal(fresh, np.arange(steps)[:, None] == [0] * batch_size)
        arrays = list(zip(*batches, strict=True))[:4]
        read, documents, targets, weights = (np.concatenate(x, axis=1) for x in arrays)
        assert np.all(np.diff(read, axis=1) == 1)
        assert len(np.unique(read)) == read.size  # no two lanes read the same token
        assert 0 <= split.num_tokens - 1 - read.size < size  # < B windows plus a partial one
        np.testing.assert_array_equal(targets, read + 1)
        np.testing.assert_array_equal(documents, split.tokens.documents[read])
        np.testing.assert_array_equal(weights, ~np.isin(targets, np.cumsum(lengths)))


@PROPERTY
@given(*map(st.integers, (1, 1, 1, 1, 0), (4, 3, 6, 3, 60)))
def test_each_stretch_is_read_in_order_and_once_per_epoch(
    seq_len, batch_size, stretch, groups, more
):
    lane_count, length = batch_size * groups, stretch * seq_len
    split = numbered(2 * lane_count * length + 1 + more)
    lanes = TrainingWindows(split, batch_size, seq_len, 3, stretch, groups)
    steps = lanes.steps_per_epoch

    def of_lanes(arrays):  # the steps of each group after one another, and its lanes as rows
        return np.concatenate(
            [np.concatenate(arrays[group::groups], axis=1) for group in range(groups)]
        )

    epochs = []
    for epoch in range(2):
        batches = [lanes[epoch * steps + index] for index in range(steps)]
        read = of_lanes([batch.tokens for batch in batches])
        fresh = of_lanes([batch.fresh[:, None] for batch in batches])
        new = np.diff(read[:, ::seq_len], prepend=-1) != seq_len  # reads on somewhere else
        new[:, 0] = True
        assert np.all(fresh >= new)
        assert np.all(np.diff(read.reshape(-1, seq_len), axis=1) == 1)
        assert len(np.unique(read)) == read.size
        assert 0 <= split.num_tokens - 1 - read.size < lane_count * length
        # A lane that is ahead of the first by some windows reads these at the end of the epoch.
        begins = fresh.copy()
        if steps > stretch * groups:
            begins[:, 0] = np.arange(lane_count) % stretch == 0
            for row in range(lane_count):
                assert np.all(np.flatnonzero(begins[row]) % stretch == -row % stretch)
        assert np.all(read[:, ::seq_len][begins] % length == 0)
        epochs.append(read[:, ::seq_len][begins])
    if len(epochs[0]) > 12:
        assert not np.array_equal(*epochs)
        assert np.any(np.diff(epochs[0]) < 0)


def test_more_lanes_than_windows_are_refused():
    with pytest.raises(UserError, match=r"carry_groups 3 x .* text has 11; lower"):
        TrainingWindows(numbered(11 * 5 + 1), 4, 5, 0, stretch=2, groups=3)


@pytest.mark.parametrize("carry", [True, False])
def test_only_carried_memory_reads_in_lanes(carry):
    batches = training_batches(numbered(1000), small(train__carry_memory=carry))
    assert [batches[step].fresh.all() for step in range(3)] == [True, not carry, not carry]


@PROPERTY
@given(st.integers(2, 200), st.integers(1, 7), st.integers(1, 4))
def test_lanes_of_an_evaluation_are_consecutive_and_in_order(count, seq_len, batch_size):
    batches = list(every_window(numbered(count), batch_size, seq_len))
    read = np.concatenate([batch.tokens for batch in batches], axis=1)
    stretches = np.arange(read.size).reshape(read.shape)
    np.testing.assert_array_equal(read, np.where(stretches < count, stretches, 0))  # 0 is padding
    assert read.size - (count - 1) < batch_size * seq_len
    assert [batch.fresh.mean() for batch in batches] == [1] + [0] * (len(batches) - 1)


# --- training ---

# Documents start inside the second window of lane 0, at the start of lane 1's, and in lane 2.
TRAINING = some_split(40, 88, 72, LANES * WINDOW * WINDOWS + 1 - 200)


def read_window(params, batch, memory=None):
    """(mean loss, memory) after a window, computed by the model directly."""
    output = forward(small().model)(params, batch.tokens, batch.documents, memory)
    values = cross_entropies(output.logits, batch.targets)
    return np.average(values, weights=batch.weights), output.state


@functools.cache
def compiled_step(accumulate_steps):
    """Plain gradient steps, whose learning rate is the optimizer state; and the initial state."""
    cfg = small(train__accumulate_steps=accumulate_steps)
    optimizer = optax.GradientTransformation(
        lambda params: jnp.zeros(()),
        lambda grads, rate, params: (jax.tree.map(lambda x: -rate * x, grads), rate),
    )
    state = init_train_state(cfg, optimizer, jax.random.key(0))._replace(params=some_params())
    return make_train_step(cfg, optimizer), jax.tree.map(np.array, state)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_training_continues_where_the_previous_step_ended(accumulate_steps):
    batches = training_batches(TRAINING, small())
    here, after = (
        [x[part].reshape(LANES, -1) for x in TRAINING.tokens] for part in (np.s_[:-1], np.s_[1:])
    )
    whole = forward(small().model)(some_params(), *here)
    values, weights = cross_entropies(whole.logits, after[0]), here[1] == after[1]
    step, state = compiled_step(accumulate_steps)
    memory = None
    for number in range(2 * WINDOWS):  # two epochs
        batch, index = batches[number], number % WINDOWS
        window = np.s_[index * WINDOW : (index + 1) * WINDOW]
        if index == 0:  # each lane reads one part of the text, which one is drawn for each epoch
            parts = [here[0][:, window].tolist().index(row) for row in batch.tokens.tolist()]
        state, metrics = step(state, batch)
        expected = np.average(values[parts, window], weights=weights[parts, window])
        assert float(metrics.loss) == pytest.approx(expected, abs=1e-5)
        assert index == 0 or abs(expected - read_window(some_params(), batch)[0]) > 1e-3
        memory = read_window(some_params(), batch, memory if index else None)[1]
        check(state.memory, jax.tree.map(lambda x: x[None], memory))
    check(memory.layers[0].h, whole.state.layers[0].h[np.array(parts)])

    # The last window again, now with an empty state in some lanes.
    last, fresh = batch, np.array([True, False, True, False])
    carried, alone = (read_window(some_params(), last, x)[1] for x in (memory, None))
    assert np.abs(carried.layers[0].h - alone.layers[0].h).max(axis=1).min() > 1e-3
    state, _ = step(state, last._replace(fresh=fresh))
    for expected, lanes in ((alone, fresh), (carried, ~fresh)):
        found, expected = (jax.tree.leaves(memory) for memory in (state.memory, expected))
        check([x[0][lanes] for x in found], [x[lanes] for x in expected])


def test_groups_of_lanes_take_turns_each_with_its_own_memory():
    cfg = small(train__carry_groups=2, train__batch_size=LANES // 2)
    batches, memories = training_batches(TRAINING, cfg), {}
    state = init_train_state(cfg, optax.sgd(0.0), jax.random.key(0))
    state = jax.tree.map(np.array, state._replace(params=some_params()))
    step = make_train_step(cfg, optax.sgd(0.0))
    for index in range(6):
        batch, group = batches[index], index % 2
        loss, memories[group] = read_window(some_params(), batch, memories.get(group))
        assert index < 2 or abs(loss - read_window(some_params(), batch)[0]) > 1e-3
        state, metrics = step(state, batch)
        assert float(metrics.loss) == pytest.approx(loss, abs=1e-5)


@functools.cache
def gradient_of_second_window(held):
    """Computed directly, with the memory of the first window held constant or not."""
    first, second = (training_batches(TRAINING, small())[i] for i in range(2))

    def loss(params):
        model = nnx.merge(graph_of(small().model), params)
        memory = model(*map(jnp.asarray, first[:2])).state
        memory = jax.lax.stop_gradient(memory) if held else memory
        logits = model(*map(jnp.asarray, second[:2]), memory).logits
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), second.targets[..., None], axis=-1)
        return -jnp.sum(chosen[..., 0] * second.weights) / second.weights.sum()

    return jax.jit(jax.grad(loss))(some_params())


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_no_gradient_flows_back_into_carried_memory(accumulate_steps):
    held, flowing = map(gradient_of_second_window, (True, False))
    norm = float(optax.tree.norm(held))
    assert optax.tree.norm(optax.tree.sub(held, flowing)) > 0.01 * norm
    batches = training_batches(TRAINING, small())
    step, state = compiled_step(accumulate_steps)
    state, _ = step(state, batches[0])
    state, metrics = step(state._replace(opt_state=jnp.float32(0.1)), batches[1])
    changed = jax.tree.map(np.array, state.params)
    actual = jax.tree.map(lambda before, after: (before - after) / 0.1, some_params(), changed)
    check(actual, held)
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-4)

    # Windows read before a step were read with the parameters of that time.
    _, memory = read_window(some_params(), batches[1], read_window(some_params(), batches[0])[1])
    _, metrics = step(state, batches[2])
    expected, _ = read_window(changed, batches[2], memory)
    assert float(metrics.loss) == pytest.approx(expected, abs=1e-5)


# --- evaluation ---


def buckets(split, lanes, seq_len, values):
    """First context -> (tokens, mean of their values), computed token by token."""
    steps = math.ceil(math.ceil((split.num_tokens - 1) / seq_len) / lanes)
    found, context = {}, 0
    for i, document in enumerate(split.tokens.documents[:-1]):
        if i % (steps * seq_len) == 0 or document != split.tokens.documents[i - 1]:
            context = 0
        if document == split.tokens.documents[i + 1]:
            first = 0
            while context >= max(256, 2 * first):
                first = max(256, 2 * first)
            found.setdefault(first, []).append(values[i])
        context += 1
    return {first: (len(x), sum(x) / len(x)) for first, x in sorted(found.items())}


def check_buckets(result, expected):
    found = {
        bucket.first: (bucket.tokens, bucket.loss)
        for bucket in result.breakdown.buckets("position")
    }
    assert list(found) == list(expected)
    for first, values in expected.items():
        assert found[first] == pytest.approx(values, rel=1e-5)


def pretended_step(_, batch, memory):
    """Invents losses: a function of the token read and the one that follows."""
    loss = np.float32(batch.tokens % 101 + batch.targets % 7)
    return EvalTokens(loss * batch.weights, (batch.tokens % 3 == 0) * batch.weights), memory


@settings(PROPERTY, max_examples=30)
@given(
    st.lists(st.integers(1, 40) | st.sampled_from([64, 256, 512, 1999]), max_size=5),
    st.sampled_from([16, 64, 248, 256, 1000]),
    st.integers(1, 3),
    st.booleans(),
)
def test_losses_by_context_equal_those_of_a_loop_over_tokens(lengths, seq_len, lanes, carry):
    split = numbered(*lengths, 2)
    cfg = small(train__seq_len=seq_len, train__eval_batch_size=lanes)
    values = split.tokens.tokens[:-1] % 101 + split.tokens.tokens[1:] % 7
    expected = buckets(split, lanes, seq_len, values)
    check_buckets(evaluate(pretended_step, None, split, cfg, carry), expected)


@pytest.mark.parametrize("carry", [True, False])
def test_evaluation_in_lanes_equals_one_pass_over_each_lane(carry):
    # Two lanes of 36 windows. The first ends within document 2; two documents start with a window.
    split = some_split(1120, 1, 39, 40, 272, 700, 90)
    cfg = small(train__eval_batch_size=2)
    shape = (2, 36 * WINDOW) if carry else (72, WINDOW)
    logits = forward(cfg.model)(some_params(), *(np.resize(x, shape) for x in split.tokens)).logits
    logits = np.asarray(logits).reshape(-1, 64)[: split.num_tokens - 1]
    values = cross_entropies(logits, split.tokens.tokens[1:])
    counted = split.tokens.documents[1:] == split.tokens.documents[:-1]
    result = evaluate(make_eval_step(cfg.model), some_params(), split, cfg, carry)
    assert result.tokens == counted.sum() == split.num_tokens - 7
    assert result.loss == pytest.approx(values[counted].mean(), abs=1e-5)
    expected = buckets(split, 2, WINDOW, values)
    assert list(expected) == [0, 256, 512, 1024]
    check_buckets(result, expected)


# --- a text file ---

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ufeff\0"), min_size=2, max_size=80)
LONG_TEXT = "ş€😀\r\n" * 2_000  # long enough for characters to cross the borders of the buffer


@PROPERTY
@given(TEXT, st.integers(1, 9), st.integers(1, 9), st.sampled_from([b"", b"\xef\xbb\xbf"]))
@example(LONG_TEXT, 4096, 100, b"")
@example("a" + LONG_TEXT, 4096, 100, b"")
def test_a_file_read_in_small_blocks_equals_the_complete_file(
    tmp_path_factory, text, block, size, mark
):
    path = tmp_path_factory.getbasetemp() / "a.txt"
    path.write_bytes(mark + text.encode())
    assert max(map(len, stream_text(path, block))) <= block
    tokenizer = CharTokenizer.train([text], 1_000)
    windows = TextWindows(stream_text(path, block), tokenizer, size, "a text")
    batches = list(windows)
    assert windows.num_bytes == len(text.encode())
    followers = np.concatenate([batch.targets[batch.weights == 1] for batch in batches])
    assert tokenizer.decode(followers) == text
    tokens = document_tokens(tokenizer, text)
    whole = Split(ArrayTokens(tokens, np.zeros_like(tokens)), len(tokens), 0)
    at_once = every_window(whole, 1, size)
    jax.tree.map(np.testing.assert_array_equal, batches, list(at_once))
