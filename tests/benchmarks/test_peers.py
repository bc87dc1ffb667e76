"""The peers: their equations, their forms, and the rules that all models of a text keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.peers import deltanet, griffin, lstm, models
from benchmarks.peers.stack import Place
from benchmarks.peers.transformer import Attention
from helpers import documents_with_starts, random_tokens
from mmrec_jax.config import ModelConfig
from mmrec_jax.data.batches import Batch
from mmrec_jax.learning.step import begin
from small_runs import config

VOCAB, TIME, WINDOW, BATCH = 20, 16, 5, 2
TOKENS = random_tokens(BATCH, 2 * TIME, VOCAB)
DOCUMENTS = documents_with_starts(2 * TIME, [6, TIME, 21], [11, 12])  # also where a window begins


@functools.cache
def model_of(name):
    """A small model, its parameters with noise, and its compiled window form."""
    layers = {"griffin": 3, "lstm": 2}.get(name, 1)  # the third of Griffin has attention
    shape = {"model__vocab_size": VOCAB, "model__dim": 32, "model__num_layers": layers}
    cfg = config(**shape, model__chunk_len=4, model__long_term=0, train__seq_len=TIME)
    (model,) = models.build([name], cfg, WINDOW)
    params = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
        model.functions.init_params(jax.random.key(0)),
    )
    return model, params, jax.jit(model.functions.apply)


def windows(name, tokens=TOKENS, documents=DOCUMENTS, carry=True):
    """Logits of two windows in turn, and the state after them."""
    model, params, apply = model_of(name)
    state, logits = model.functions.init_state(len(tokens)), []
    for here in (np.s_[:, :TIME], np.s_[:, TIME:]):
        state = state if carry else model.functions.init_state(len(tokens))
        output = apply(params, tokens[here], documents[here], state)
        state = output.state
        logits.append(output.logits)
    return np.concatenate(logits, axis=1), state


@pytest.fixture(params=models.PEERS)
def name(request):
    return request.param


def close(actual, expected, tolerance=2e-4):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), actual, expected
    )


# --- what all of them do ---


@pytest.mark.slow
def test_reading_token_by_token_gives_what_windows_give(name):
    model, params, _ = model_of(name)
    logits, state = windows(name)
    after, rows = model.functions.init_state(BATCH), []
    if name == "transformer":  # has no state between windows: one token at a time needs slots
        rooms = [model.start(2 * TIME) for _ in range(BATCH)]
        after = jax.tree.map(lambda *x: jnp.concatenate(x), *rooms)
        logits = model_of(name)[2](params, TOKENS, DOCUMENTS).logits
    step = jax.jit(model.step)
    for index in range(2 * TIME):
        output = step(params, TOKENS[:, index], DOCUMENTS[:, index], after)
        after = output.state
        rows.append(output.logits)
    close(np.stack(rows, axis=1), logits)
    if name != "transformer":
        close(after, state)


def test_the_state_is_of_constant_size_and_the_carried_one_matters(name):
    model, _, _ = model_of(name)
    logits, state = windows(name)
    empty = model.functions.init_state(BATCH)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(empty), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    fresh, _ = windows(name, carry=False)
    close(logits[:, :TIME], fresh[:, :TIME], 0)
    begins = DOCUMENTS[:, TIME] != DOCUMENTS[:, TIME - 1]
    assert list(begins) == [True, False]
    close(logits[0], fresh[0])  # a document begins with the window
    differs = np.abs(logits[1, TIME] - fresh[1, TIME]).max() > 1e-3
    assert differs == (name != "transformer")


def test_no_document_sees_another_and_no_token_a_later_one(name):
    logits, _ = windows(name)
    changed = (TOKENS + 1) % VOCAB
    for row, first, last in ((0, 6, TIME), (0, TIME, 21), (0, 21, 32), (1, 12, TIME)):
        tokens = changed.copy()
        tokens[row, first:last] = TOKENS[row, first:last]
        close(windows(name, tokens)[0][row, first:last], logits[row, first:last])
    tokens = TOKENS.copy()
    tokens[:, 9] = changed[:, 9]
    later, _ = windows(name, tokens)
    close(later[:, :9], logits[:, :9])
    assert np.abs(later[:, 10] - logits[:, 10]).max() > 1e-3  # the text before is read at all


def test_a_fresh_lane_starts_from_an_empty_state(name):
    model, _, _ = model_of(name)
    _, state = windows(name)
    zeros = np.zeros((BATCH, TIME), np.int32)
    batch = Batch(zeros, zeros, zeros, zeros.astype(np.float32), jnp.array([True, False]))
    begun, empty = begin(model.functions, state, batch), model.functions.init_state(BATCH)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), begun, empty)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[1]), begun, state)


@pytest.mark.slow
def test_every_peer_is_as_large_as_mmrec():
    cfg = config(model__dim=64, model__num_layers=2)
    vocab, D, layers = 64, 64, 2
    # By docs/architecture.md: matrices of 20 D^2, biases of 17.5 D, and two norms in each layer.
    ours = vocab * D + layers * (20 * D**2 + 17 * D + D // 2 + 2 * D) + D
    for model in models.build(models.NAMES, cfg, 96):
        assert abs(model.parameters / ours - 1) < 0.05


# --- their equations ---


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_the_chunked_delta_rule_is_the_recurrence(chunk):
    heads, keys, values = 2, 3, 5
    q, k = (random(BATCH, heads, TIME, keys, seed=seed) for seed in (0, 1))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, S = random(BATCH, heads, TIME, values), random(BATCH, heads, values, keys, seed=2)
    alpha, beta = np.random.default_rng(3).uniform(0.3, 1, (2, BATCH, heads, TIME))
    start = np.diff(DOCUMENTS[:, :TIME], axis=1, prepend=0) != 0
    expected, memory = np.zeros(v.shape), S.copy()
    for b in range(BATCH):
        for h in range(heads):
            for t in range(TIME):
                if start[b, t]:
                    memory[b, h] = 0
                key = k[b, h, t]
                erased = np.eye(keys) - beta[b, h, t] * np.outer(key, key)
                written = beta[b, h, t] * np.outer(v[b, h, t], key)
                memory[b, h] = alpha[b, h, t] * memory[b, h] @ erased + written
                expected[b, h, t] = memory[b, h] @ q[b, h, t]
    with jax.enable_x64(True):
        actual = jax.jit(deltanet.gated_delta_rule, static_argnums=7)(
            q, k, v, np.log(alpha), beta, np.cumsum(start, axis=1), S, chunk
        )
        close(actual, (expected, memory), 1e-12)


def test_the_delta_rule_stays_exact_if_all_keys_are_equal():
    """The inverse is accurate where a Neumann series would cancel."""
    A = np.tril(np.ones((64, 64), np.float32), -1)
    exact = np.eye(64) - np.eye(64, k=-1)
    close(jax.jit(deltanet.inverse_plus_one)(A), exact, 1e-6)


@pytest.mark.parametrize(("layers", "local"), [(1, []), (2, [1]), (3, [2]), (7, [2, 5])])
def test_griffin_has_local_attention_even_with_two_layers(layers, local):
    sizes = {"vocab_size": VOCAB, "dim": 8, "num_heads": 2, "num_layers": layers}
    shape = ModelConfig(**sizes, chunk_len=4, short_term=0, long_term=0)
    mixers = griffin.make(shape, 16, nnx.Rngs(0), window=8).mixers
    found = [i for i, mixer in enumerate(mixers) if isinstance(mixer.inner, Attention)]
    assert found == local


def test_griffin_follows_its_equations():
    shape = ModelConfig(
        vocab_size=VOCAB, dim=8, num_layers=1, num_heads=2, chunk_len=4, short_term=0, long_term=0
    )
    block = griffin.RecurrentBlock(shape, nnx.Rngs(0))
    block.gate_bias[...] = jnp.float32(random(16))
    z, h = random(BATCH, TIME, 8), random(BATCH, 8, seed=1)
    start = np.diff(DOCUMENTS[:, :TIME], axis=1, prepend=0) != 0
    actual = block.rg_lru(jnp.float32(z), start[..., None], jnp.float32(h))
    gates, bias, Lambda = (
        np.asarray(x[...], np.float64) for x in (block.gates, block.gate_bias, block.Lambda)
    )
    initial = 1 / (1 + np.exp(Lambda))  # exp(-softplus(Lambda))
    assert initial.min() > 0.9
    assert initial.max() < 0.999

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for t in range(TIME):
        logits = np.concatenate([z[:, t, :4] @ gates[0], z[:, t, 4:] @ gates[1]], axis=-1)
        r = sigmoid(logits[:, [0, 1, 2, 3, 8, 9, 10, 11]] + bias[:8])
        i = sigmoid(logits[:, [4, 5, 6, 7, 12, 13, 14, 15]] + bias[8:])
        a = np.exp(-8 * np.log1p(np.exp(Lambda)) * r)
        h = np.where(start[:, t, None], i * z[:, t], a * h + np.sqrt(1 - a**2) * i * z[:, t])
        close(actual[:, t], h, 1e-5)


def test_the_gradient_of_the_lstm_is_that_of_its_scan():
    a, W_h = random(TIME, BATCH, 12), 0.5 * random(3, 12, seed=1)
    first = lstm.Memory(*random(2, BATCH, 3, seed=2))
    weights, start = random(2, TIME, BATCH, 3, seed=3), random(TIME, BATCH, seed=4) > 1

    def plain(a, W_h, first):
        def step(memory, x):
            a, start = x
            h, c = (jnp.where(start[:, None], 0, x) for x in memory)
            i, f, o, g = jnp.split(a + h @ W_h, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            memory = lstm.Memory(jax.nn.sigmoid(o) * jnp.tanh(c), c)
            return memory, memory

        return jax.lax.scan(step, first, (a, start))[1]

    def loss(function):
        return lambda *x: sum(jnp.sum(w * y) for w, y in zip(weights, function(*x), strict=True))

    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (a, W_h, first))
        actual = jax.grad(loss(lambda *x: lstm.recurrence(*x, start)), (0, 1, 2))(*arguments)
        close(actual, jax.grad(loss(plain), (0, 1, 2))(*arguments), 1e-12)


def test_local_attention_is_masked_softmax_attention():
    shape = ModelConfig(
        vocab_size=VOCAB, dim=8, num_layers=1, num_heads=2, chunk_len=4, short_term=0, long_term=0
    )
    layer, heads = Attention(shape, nnx.Rngs(0), WINDOW, 1), 2
    start = np.diff(DOCUMENTS[:, :TIME], axis=1, prepend=0) != 0
    x = random(BATCH, TIME, 8)
    place = Place(jnp.asarray(start), jnp.cumsum(start, axis=1))
    actual, _ = layer(jnp.float32(x), place, layer.init_state(BATCH))
    projected = x @ np.asarray(layer.W_qkv.kernel[...], np.float64)
    angles = np.arange(TIME)[:, None] * 10_000.0 ** (-np.arange(2) / 2)

    def turned(x):
        x = (x[..., :2] + 1j * x[..., 2:]) * np.exp(1j * angles)
        return np.concatenate([x.real, x.imag], axis=-1)

    k, v, outputs = turned(projected[..., 8:12]), projected[..., 12:], []
    for head in range(heads):
        q = turned(projected[..., 4 * head : 4 * head + 4])
        logits = q @ np.swapaxes(k, 1, 2) / 2
        age = np.arange(TIME)[:, None] - np.arange(TIME)
        document = DOCUMENTS[:, :TIME]
        seen = (age >= 0) & (age < WINDOW) & (document[:, :, None] == document[:, None])
        weights = np.where(seen, np.exp(logits), 0)
        outputs.append(weights / weights.sum(axis=-1, keepdims=True) @ v)
    expected = np.concatenate(outputs, axis=-1) @ np.asarray(layer.W_o.kernel[...], np.float64)
    close(actual, expected, 1e-5)
