"""Small models, their parameters as plain dicts, and random texts, shared by the model's tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmrec_jax.config import ModelConfig
from mmrec_jax.data.dataset import ArrayTokens, Split
from mmrec_jax.model.lm import MMRec

VOCAB = 20
LAYERS = 2
UNOPTIMIZED = {"xla_backend_optimization_level": 0}  # halves compile time


def small_config(**changes):
    """Everything is switched on; memories are so small that a text of 32 tokens overflows them."""
    values = {
        "vocab_size": VOCAB,
        "dim": 16,
        "num_layers": LAYERS,
        "num_heads": 2,
        "chunk_len": 4,
        "short_term": 8,
        "long_term": 3,
        "oldest_age": 2,
        "use_dpg": True,
        "dpg_rank": 4,
        "use_uboo": True,
    }
    return ModelConfig(**(values | changes))


@functools.cache
def graph_of(config):
    return nnx.split(nnx.eval_shape(lambda: MMRec(config, nnx.Rngs(0))))[0]


@functools.cache
def _initial():
    model = jax.jit(lambda: nnx.split(MMRec(small_config(), nnx.Rngs(0)))[1])()
    return nnx.to_pure_dict(model)


def initial_params(config):
    """The initial parameters of a `small_config`, as a new nested dict of NumPy arrays."""
    dtype = np.float64 if config.dtype == "float64" else np.float32
    params = jax.tree.map(lambda x: np.array(x, dtype), _initial())
    params["blocks"] = {index: params["blocks"][index] for index in range(config.num_layers)}
    for block in params["blocks"].values():
        if not config.use_dpg:
            del block["W_down"], block["W_up"]
        if not config.use_uboo:
            del block["mlp_err"], block["mlp_target"]
    return params


def random_params(config, seed=0):
    """Initial parameters with noise everywhere, so that none is zero or one."""
    full = dataclasses.replace(config, num_layers=LAYERS, use_dpg=True, use_uboo=True)
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda x: x + (0.1 * rng.standard_normal(x.shape)).astype(x.dtype), initial_params(full)
    )

    def keep(wanted, values):
        if isinstance(wanted, dict):
            return {key: keep(wanted[key], values[key]) for key in wanted}
        return values

    return keep(initial_params(config), noisy)


def widen(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@functools.cache
def forward(config, optimized=False):
    """The compiled model: (params, tokens, documents, state, key) -> Output."""
    graph = graph_of(config)

    @functools.partial(jax.jit, compiler_options=None if optimized else UNOPTIMIZED)
    def apply(params, tokens, documents, state=None, key=None):
        return nnx.merge(graph, params)(tokens, documents, state, key)

    return apply


@functools.cache
def gradient(config):
    """The compiled gradient of a sum of losses with respect to the parameters.

    Its arguments: params, tokens, documents, the weights of (cross-entropy, saliency, UBOO), and
    `cotangent`, whose scalar product with the logits is added to the loss.
    """
    graph = graph_of(config)

    @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
    @jax.grad
    def apply(params, tokens, documents, weights, cotangent):
        output = nnx.merge(graph, params)(tokens, documents, None, jax.random.key(0))
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
            output.logits[:, :-1], tokens[:, 1:]
        ).mean()
        losses = cross_entropy, output.aux.saliency, output.aux.uboo
        return sum(w * x for w, x in zip(weights, losses, strict=True)) + jnp.sum(
            cotangent * output.logits
        )

    return apply


def random_tokens(batch, time, vocab=VOCAB, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, (batch, time)).astype(np.int32)


def documents_with_starts(time, *starts_of_texts):
    """Document ids: for each text the positions where its second, third, ... document starts."""
    ids = np.zeros((len(starts_of_texts), time), np.int32)
    for row, starts in zip(ids, starts_of_texts, strict=True):
        for start in starts:
            row[start:] += 1
    return ids


def numbered(*lengths):
    """A split of documents of these lengths, in which every token id is its own position."""
    total = sum(lengths)
    documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    tokens = ArrayTokens(np.arange(total, dtype=np.int32), documents)
    return Split(tokens, total, total - len(lengths))
