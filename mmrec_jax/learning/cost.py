"""What a run will cost, computed before anything is allocated: train.py --dry_run.

Parameters are those of the model itself, traced by shapes alone. FLOPs are those of matrix
products:

    forward, per token    2 for each weight of a matrix (the embedding counts as logits), but of
                          the map of p only for 4 H sums of its columns (`Block.evidence`); per
                          layer 4 D (S + C + M) to read short-term and long-term memory and
                          4 D (C + M) to find the candidates for the bank that say the same
    training, per token   3 times that, except for what has no gradient (the last, and saliency
                          without its loss); also, per layer, 4 D^2 to recompute the gates of the
                          recurrence, 4 D for each query that the saliency loss examines, and 3
                          times the products of UBOO; with model.remat, the forward pass of the
                          layers once more

Activations are what the backward pass of the traced loss keeps. One and two layers are traced,
because every further layer keeps as much as the second.
"""

import dataclasses
import functools
from collections import Counter
from typing import NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh

from mmrec_jax.config import Config, ModelConfig
from mmrec_jax.learning.optimizer import make_optimizer
from mmrec_jax.learning.sharding import partition
from mmrec_jax.learning.step import abstract_batch, training_loss
from mmrec_jax.model.interface import mmrec
from mmrec_jax.model.layout import AXES, EVERYWHERE, FSDP, TIME, num_parts
from mmrec_jax.model.params import param_shapes

_EMBEDDING, _NORMS, _UBOO = "embedding, logits", "norms", "UBOO"
_PROJECTIONS = "q k v z p e"
_READING, _CHOOSING = "reading memories", "choosing what to keep"
_PARTS = {
    "embedding": _EMBEDDING,
    "W_fused": _PROJECTIONS,
    "W_g": "recurrence",
    "W_m": "recurrence",
    "mlp_gamma": "decay",
    "mlp_context": "decay",
    "W_down": "DPG",
    "W_up": "DPG",
    "W_q": "attention",
    "W_o": "attention",
    "W_1": "feed-forward",
    "W_2": "feed-forward",
    "mlp_err": _UBOO,
    "mlp_target": _UBOO,
}


class Division(NamedTuple):
    """How arrays of one kind, one in each layer, lie on a mesh."""

    name: str  # such as "blocks.W_fused.kernel"
    shape: tuple[int, ...]
    count: int
    axis: int | None  # the axis that `fsdp` divides; None: every device has all of it
    bytes: int  # of all of them, on one device


class Flops(NamedTuple):
    """FLOPs of matrix products per token."""

    forward: dict[str, int]  # by part
    training: int


class Memory(NamedTuple):
    """Bytes of a training step on one device."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    memory: int  # of the sequences that are read, or carried
    # What is whole while it is used: the weights of a block, the embedding; with mesh.time, the
    # keys and values of a layer.
    gathered: int = 0


def count_parameters(model: ModelConfig) -> dict[str, int]:
    """The number of parameters, by part of the model."""
    counts = dict.fromkeys(_PARTS.values(), 0)
    for part, x in _named(model):
        counts[part] = counts.get(part, 0) + x.size
    return {part: count for part, count in counts.items() if count}


def count_all_parameters(model: ModelConfig) -> int:
    """The number of all parameters, of a model of any size."""
    params = param_shapes(dataclasses.replace(model, num_layers=1))
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    return sum(sizes.values()) + (model.num_layers - 1) * sizes["blocks"]


def count_flops(config: Config) -> Flops:
    """FLOPs per token, as defined at the top of this file."""
    model, layers = config.model, config.model.num_layers
    forward = Counter()
    for part, x in _named(model):
        if x.ndim == 2:
            forward[part] += 2 * x.size
    forward[_PROJECTIONS] -= 2 * model.dim * (model.dim - 4 * model.num_heads) * layers
    forward[_READING] = 4 * model.dim * model.seen_tokens * layers
    of_uboo = forward.pop(_UBOO, 0)  # computed only in training
    if model.long_term:
        forward[_CHOOSING] = 4 * model.dim * (model.chunk_len + model.long_term) * layers
    once = sum(forward.values())

    training = 3 * (once + of_uboo) - 2 * forward[_CHOOSING] + 4 * model.dim**2 * layers
    if model.long_term and model.saliency_weight:
        length = config.train.seq_len
        queries = length // -(-length // model.saliency_queries)
        training += 4 * model.dim * queries * layers
    else:
        training -= 16 * model.dim * model.num_heads * layers  # of saliency
    if model.remat:
        training += once - forward[_EMBEDDING] - forward[_CHOOSING] + of_uboo
        training -= 8 * model.dim**2 * layers  # the last product, by W_2, is not needed again
    return Flops(dict(forward), training)


ONE_DEVICE = AbstractMesh((1, 1, 1), AXES)


def count_memory(config: Config, mesh: AbstractMesh = ONE_DEVICE) -> Memory:
    """Bytes that a training step needs at its peak, without what the compiler adds."""
    train, params = config.train, _shapes(config.model)
    optimizer = make_optimizer(train, optax.constant_schedule(0.0))
    of_params = _bytes_per_device(params, mesh)
    lanes = train.lanes if train.carry_memory else train.batch_size
    state = jax.eval_shape(lambda: mmrec(config.model).init_state(lanes))
    whole = {"embedding": params["embedding"], "block": params["blocks"][0]}
    return Memory(
        parameters=of_params,
        optimizer=_bytes_per_device(jax.eval_shape(optimizer.init, params), mesh),
        gradients=of_params * (2 if train.accumulate_steps > 1 else 1),
        activations=_activations(config) // mesh.size,
        memory=_bytes(state) // num_parts(mesh),
        gathered=(_bytes(whole) if mesh.shape[FSDP] > 1 else 0) + _whole_sequences(config, mesh),
    )


def _whole_sequences(config: Config, mesh: AbstractMesh) -> int:
    """Bytes of a layer's keys, values and directions, which all devices of `time` have."""
    if mesh.shape[TIME] == 1 or not config.model.long_term:
        return 0
    tokens = config.train.step_tokens // config.train.accumulate_steps // num_parts(mesh)
    return tokens * 2 * config.model.dim * (jax.numpy.dtype(config.model.dtype).itemsize + 4)


def _bytes_per_device(tree, mesh: AbstractMesh) -> int:
    def of(path, x):
        is_divided = partition(path, x.shape, mesh) != EVERYWHERE
        return _bytes(x) // (mesh.shape[FSDP] if is_divided else 1)

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(of, tree)))


def divide_parameters(model: ModelConfig, mesh: AbstractMesh) -> list[Division]:
    """How the parameters lie on a mesh, by kind."""
    divisions: dict[str, Division] = {}
    for path, x in jax.tree_util.tree_flatten_with_path(_shapes(model))[0]:
        name = ".".join(str(entry.key) for entry in path if not isinstance(entry.key, int))
        spec = partition(path, x.shape, mesh)
        axis = next((axis for axis, names in enumerate(spec) if names), None)
        size = _bytes(x) // (1 if axis is None else mesh.shape[FSDP])
        before = divisions.get(name, Division(name, x.shape, 0, axis, 0))
        divisions[name] = before._replace(count=before.count + 1, bytes=before.bytes + size)
    return list(divisions.values())


@functools.cache
def _shapes(model: ModelConfig):
    """Shapes of the parameters. All layers are alike, so only one is traced."""
    one = dataclasses.replace(model, num_layers=1)
    params = param_shapes(one)
    return {**params, "blocks": dict.fromkeys(range(model.num_layers), params["blocks"][0])}


def _named(model: ModelConfig):
    """Yields the part and the shape of every parameter."""
    for path, x in jax.tree_util.tree_flatten_with_path(_shapes(model))[0]:
        names = (str(entry.key) for entry in path)
        yield next((_PARTS[name] for name in names if name in _PARTS), _NORMS), x


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@functools.cache
def _activations(config: Config) -> int:
    layers, remat = config.model.num_layers, config.model.remat
    one, two = _kept(config, 1, remat), _kept(config, 2, remat)
    total = one + (layers - 1) * (two - one)
    if remat:  # the layer that is being recomputed
        total += _kept(config, 2, False) - _kept(config, 1, False)
    return total


def _kept(config: Config, num_layers: int, remat: bool) -> int:
    """Bytes kept between the forward and backward pass of a micro-batch, without parameters."""
    model = dataclasses.replace(
        config.model, num_layers=num_layers, remat=remat, scan_layers="never"
    )
    config = dataclasses.replace(config, model=model)
    rows = config.train.batch_size // config.train.accumulate_steps
    batch, params = abstract_batch(rows, config.train.seq_len), _shapes(model)

    def backward(params, batch):
        def objective(params):
            key = jax.random.key(0)
            return training_loss(config, mmrec(model), params, batch, None, 1.0, key)[0]

        return jax.vjp(objective, params)[1]

    def count(tree) -> Counter:
        return Counter((x.shape, x.dtype) for x in jax.tree.leaves(tree))

    kept = count(jax.eval_shape(backward, params, batch)) - count(params)
    return sum(number * _bytes(jax.ShapeDtypeStruct(*x)) for x, number in kept.items())
