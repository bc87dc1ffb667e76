"""The language model: size, causality, documents, gradients, auxiliary losses, precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import oracle
from helpers import (
    LAYERS,
    documents_with_starts,
    forward,
    gradient,
    initial_params,
    random_params,
    random_tokens,
    small_config,
    widen,
)
from mmrec_jax.config import ModelConfig
from mmrec_jax.model.interface import mmrec
from mmrec_jax.model.lm import MMRec
from mmrec_jax.model.params import stack_layers, unstack_layers

BATCH, TIME = 2, 40
CROSS_ENTROPY, SALIENCY, UBOO = np.eye(3, dtype=np.float32)
TRAINING = CROSS_ENTROPY + 0.3 * SALIENCY + 0.1 * UBOO
SLICES = ("q", "k", "v", "z", "p", "e")


def one_document():
    return documents_with_starts(TIME, (), ())


def slices(W_fused):
    """The kernel and bias of W_fused, cut into six."""
    for name in ("kernel", "bias"):
        parts = np.split(np.asarray(W_fused[name]), 6, axis=-1)
        yield from ((f"{part} {name}", x) for part, x in zip(SLICES, parts, strict=True))


def training_gradient(params, tokens, documents, weights=TRAINING, cotangent=None, **changes):
    config = small_config(**changes)
    if cotangent is None:
        cotangent = np.zeros((*tokens.shape, config.vocab_size), np.float32)
    return jax.device_get(gradient(config)(params, tokens, documents, weights, cotangent))


def test_tiny_model_has_the_stated_number_of_parameters():
    config = ModelConfig(
        vocab_size=5000,
        dim=128,
        num_layers=4,
        num_heads=4,
        chunk_len=32,
        short_term=64,
        long_term=32,
    )
    params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: MMRec(config, nnx.Rngs(0))))[1])

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    assert count(params) == 1_960_832
    assert count(params["embedding"]) == 640_000
    assert {name: count(part) for name, part in params["blocks"][0].items()} == {
        "norm1": 128,
        "W_fused": 99_072,
        "mlp_gamma": 8_352,
        "mlp_context": 8_352,
        "W_g": 16_512,
        "W_m": 32_896,
        "W_q": 16_512,
        "W_o": 16_512,
        "norm2": 128,
        "W_1": 66_048,
        "W_2": 65_664,
    }


@pytest.mark.parametrize("changed", [0, 7, 8, 21, TIME - 1])
def test_logits_depend_on_no_later_token(changed):
    config = small_config()
    params, tokens = random_params(config), random_tokens(BATCH, TIME)
    other = tokens.copy()
    other[:, changed] = (other[:, changed] + 1) % config.vocab_size
    before = forward(config)(params, tokens, one_document()).logits
    after = forward(config)(params, other, one_document()).logits
    difference = np.abs(before - after).max(axis=(0, 2))
    assert np.all(difference[:changed] < 1e-6)
    assert np.all(difference[changed:] > 1e-4)


def two_documents(first_of_second):
    """Parameters and tokens with which the first document's tokens are by far the most salient.

    The first document uses tokens 0 to 9, the second 10 to 19. Channel 0 of the residual stream
    distinguishes them, and saliency reads little else.
    """
    config = small_config()
    params = random_params(config)
    embedding = params["embedding"]["embedding"]
    embedding[:10, 0], embedding[10:, 0] = 8.0, -8.0
    for block in params["blocks"].values():
        p = np.split(block["W_fused"]["kernel"], 6, axis=1)[SLICES.index("p")]
        p[0] = 3.0
    tokens = random_tokens(BATCH, TIME, vocab=10)
    tokens[:, first_of_second:] += 10
    documents = documents_with_starts(TIME, *[(first_of_second,)] * BATCH)
    return config, params, tokens, documents


@pytest.mark.parametrize("start", [12, 18])
def test_document_sees_nothing_of_another(start):
    config, params, tokens, documents = two_documents(start)
    other = tokens.copy()
    other[:, :start] = (other[:, :start] + 3) % 10

    def second_document(tokens, documents):
        return forward(config)(params, tokens, documents).logits[:, start:]

    kept_apart = second_document(tokens, documents)
    np.testing.assert_allclose(kept_apart, second_document(other, documents), rtol=0, atol=1e-6)

    # As one document they do see each other, and every bank holds tokens of the first to the end.
    # So the test would notice a leak.
    together = second_document(tokens, one_document())
    difference = np.abs(together - second_document(other, one_document())).max(axis=(0, 2))
    assert np.all(difference > 1e-3)
    _, traces = oracle.run_model(widen(params), config, tokens, one_document())
    for layer in (layer for text in traces for layer in text):
        assert all(min(bank) < start for bank in layer.banks)


def test_gradient_of_a_document_stops_at_its_start():
    start = 18
    _, params, tokens, documents = two_documents(start)
    # Only the second document's logits of its own tokens: logits of other tokens are tied to the
    # embeddings of the first document's tokens.
    cotangent = np.zeros((BATCH, TIME, 20), np.float32)
    cotangent[:, start:, 10:] = np.random.default_rng(0).standard_normal((BATCH, TIME - start, 10))
    nothing = np.zeros(3, np.float32)

    def embedding_gradient(documents):
        gradients = training_gradient(params, tokens, documents, nothing, cotangent)
        return np.abs(gradients["embedding"]["embedding"]).max(axis=1)

    read_by_first = np.isin(np.arange(10), tokens[:, :start])
    apart = embedding_gradient(documents)
    assert np.all(apart[:10] == 0)
    assert np.all(apart[np.unique(tokens[:, start:])] > 0)
    assert np.all(embedding_gradient(one_document())[:10][read_by_first] > 0)


def test_every_parameter_has_a_gradient():
    config = small_config()
    params, tokens = random_params(config), random_tokens(BATCH, TIME)
    gradients = training_gradient(params, tokens, one_document())
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    for path, x in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(x)), name
        # Some units of the rectifier behind W_down may be off.
        least = 0.3 if "W_down" in name or "W_up" in name else 0.99
        assert np.count_nonzero(x) > least * x.size, name
    for block in gradients["blocks"].values():
        for name, x in slices(block["W_fused"]):
            assert np.count_nonzero(x) > 0.99 * x.size, name


def test_initial_gradients_are_zero_only_behind_the_zero_of_dpg():
    params, tokens = initial_params(small_config()), random_tokens(BATCH, TIME)
    gradients = training_gradient(params, tokens, one_document())
    zero = {
        jax.tree_util.keystr(path)
        for path, x in jax.tree.leaves_with_path(gradients)
        if not np.any(x)
    }
    assert zero == {f"['blocks'][{index}]['W_down']['kernel']" for index in params["blocks"]}
    for block in gradients["blocks"].values():
        for name, x in slices(block["W_fused"]):
            assert np.any(x), name


def test_queries_start_equal_to_keys_in_heads_with_shifted_keys():
    config = small_config()
    for block in initial_params(config)["blocks"].values():
        found = dict(slices(block["W_fused"]))
        q, k = (np.split(found[f"{name} kernel"], config.num_heads, axis=1) for name in "qk")
        equal = [np.array_equal(*pair) for pair in zip(q, k, strict=True)]
        assert equal == [head % 2 == 0 for head in range(config.num_heads)]


def test_cross_entropy_alone_gives_saliency_no_gradient():
    """Selection has no gradient, and p is used for nothing else."""
    params, tokens = random_params(small_config()), random_tokens(BATCH, TIME)
    gradients = training_gradient(params, tokens, one_document(), CROSS_ENTROPY)
    for block in gradients["blocks"].values():
        found = dict(slices(block["W_fused"]))
        assert not np.any(found["p kernel"])
        assert not np.any(found["p bias"])
        assert np.any(found["q kernel"])


@pytest.mark.parametrize("starts", [((), ()), ((9,), (4, 24, 25))], ids=["one", "several"])
def test_auxiliary_losses_equal_oracle(starts):
    """For saliency: the use of every token by every later query, as if nothing were evicted."""
    config = small_config(dtype="float64")
    tokens, documents = random_tokens(BATCH, TIME), documents_with_starts(TIME, *starts)
    with jax.enable_x64(True):
        params = random_params(config)
        output = forward(config)(params, tokens, documents, None, jax.random.key(0))
        aux = jax.device_get(output.aux)
    logits, traces = oracle.run_model(params, config, tokens, documents)
    used = np.concatenate([text[0].used[text[0].used >= 0] for text in traces])
    assert used.max() > 2 * np.median(used)
    np.testing.assert_allclose(output.logits, logits, rtol=0, atol=1e-10)
    np.testing.assert_allclose(aux.saliency, oracle.saliency_loss(config, traces), rtol=1e-10)
    np.testing.assert_allclose(aux.uboo, oracle.uboo_loss(traces), rtol=1e-10)


def test_saliency_loss_pulls_saliency_towards_use():
    """A gradient step on this loss alone lowers it, and its gradient reaches the embedding."""
    config = small_config()
    params, tokens = random_params(config), random_tokens(BATCH, TIME)
    gradients = training_gradient(params, tokens, one_document(), SALIENCY)
    assert np.any(gradients["embedding"]["embedding"])
    stepped = jax.tree.map(lambda x, g: x - 0.05 * g, params, gradients)

    def loss(params):
        output = forward(config)(params, tokens, one_document(), None, jax.random.key(0))
        return output.aux.saliency

    assert loss(stepped) < loss(params)


def test_uboo_does_not_touch_logits():
    config = small_config()
    params, tokens = random_params(config), random_tokens(BATCH, TIME)
    other = random_params(config)
    for block in other["blocks"].values():
        for name in ("mlp_err", "mlp_target"):
            block[name] = jax.tree.map(lambda x: 2 * x + 1, block[name])
    key = jax.random.key(0)
    output = forward(config)(params, tokens, one_document(), None, key)
    changed = forward(config)(other, tokens, one_document(), None, key)
    np.testing.assert_array_equal(output.logits, changed.logits)
    assert abs(output.aux.uboo - changed.aux.uboo) > 1e-3


@pytest.mark.parametrize(("silent", "reaches"), [("mlp_target", False), ("mlp_err", True)])
def test_uboo_sends_no_gradient_through_the_state_it_predicts(silent, reaches):
    """With mlp_target silenced, no gradient reaches the state; with mlp_err, h_{t-1} gets one."""
    params, tokens = random_params(small_config()), random_tokens(BATCH, TIME)
    for block in params["blocks"].values():
        block[silent]["up"]["kernel"][:] = 0
    gradients = training_gradient(params, tokens, one_document(), UBOO)
    for block in gradients["blocks"].values():
        other = "mlp_err" if silent == "mlp_target" else "mlp_target"
        assert np.any(block[other]["up"]["kernel"])
        for name in ("W_g", "W_m", "W_fused"):
            assert np.any(block[name]["kernel"]) == reaches, name
    assert np.any(gradients["embedding"]["embedding"]) == reaches


def test_dpg_starts_by_changing_nothing():
    with_dpg, without = small_config(), small_config(use_dpg=False)
    tokens = random_tokens(BATCH, TIME)
    params = random_params(with_dpg)
    noisy = forward(with_dpg)(params, tokens, one_document()).logits
    for index, block in params["blocks"].items():
        block["W_up"] = initial_params(with_dpg)["blocks"][index]["W_up"]
    logits = forward(with_dpg)(params, tokens, one_document()).logits
    expected = forward(without)(random_params(without), tokens, one_document()).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    assert np.abs(noisy - expected).max() > 1e-3


def test_bfloat16_is_close_to_float32_and_keeps_a_float32_state():
    # All tokens have a place in the bank: which ones do not would depend on rounding.
    wide = small_config(long_term=TIME)
    narrow = dataclasses.replace(wide, dtype="bfloat16")
    params, tokens = random_params(narrow), random_tokens(BATCH, TIME)
    output = forward(narrow)(params, tokens, one_document())
    expected = forward(wide)(random_params(wide), tokens, one_document()).logits
    assert output.logits.dtype == jnp.float32
    for layer in output.state.layers:
        assert layer.h.dtype == jnp.float32
        assert layer.memory.long_s.s.dtype == jnp.float32
        assert layer.memory.long_k.dtype == jnp.bfloat16
    error = np.linalg.norm(output.logits - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.03


def check_equal(actual, expected):
    for (path, x), y in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_remat_gives_the_same_gradients():
    changes = {"num_layers": 1, "dropout": 0.2, "saliency_weight": 0.0, "use_uboo": False}
    params, tokens = random_params(small_config(**changes)), random_tokens(BATCH, TIME)
    plain = training_gradient(params, tokens, one_document(), **changes)
    check_equal(training_gradient(params, tokens, one_document(), remat=True, **changes), plain)


def test_stacked_layers_compute_the_same():
    config = small_config(dropout=0.2)
    params = random_params(config)
    tokens, documents = map(jnp.asarray, (random_tokens(BATCH, TIME), one_document()))
    state = forward(config)(params, tokens, documents).state

    @jax.jit
    def read(params):
        def loss(params):
            key = jax.random.key(0)
            output = mmrec(config).apply(params, tokens, documents, state, key)
            return output.logits.std() + output.aux.saliency + output.aux.uboo, output

        gradient, output = jax.grad(loss, has_aux=True)(params)
        return output, gradient

    output, gradient = read(stack_layers(params))
    check_equal((output, unstack_layers(gradient, LAYERS)), read(params))


def test_layers_are_scanned_from_eight_on():
    assert [small_config(num_layers=n).is_scanned for n in (7, 8)] == [False, True]
    assert not small_config(num_layers=8, scan_layers="never").is_scanned


def test_dropout_follows_its_key_and_is_off_without_one():
    config = small_config(num_layers=1, dropout=0.5, use_uboo=False, saliency_weight=0.0)
    params, tokens = random_params(config), random_tokens(BATCH, TIME)

    def logits(config, key):
        return np.asarray(forward(config)(params, tokens, one_document(), None, key).logits)

    dropped = logits(config, jax.random.key(1))
    np.testing.assert_array_equal(dropped, logits(config, jax.random.key(1)))
    assert np.abs(dropped - logits(config, jax.random.key(2))).max() > 1e-2
    assert np.abs(dropped - logits(config, None)).max() > 1e-2
    expected, _ = oracle.run_model(widen(params), config, tokens, one_document())
    np.testing.assert_allclose(logits(config, None), expected, rtol=0, atol=1e-4)


def test_auxiliary_losses_are_off_without_a_key():
    config = small_config()
    params, tokens = random_params(config), random_tokens(BATCH, TIME)
    aux = forward(config)(params, tokens, one_document()).aux
    assert (aux.saliency, aux.uboo) == (0, 0)
