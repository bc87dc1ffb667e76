"""What a run will cost, before anything of it is allocated: train.py --dry_run.

Parameters are those of the model itself, traced by shapes alone. FLOPs are those of matrix
products:

    forward, a token    2 for each weight of a matrix (the embedding counts as logits), and
                        4 D (S + C + M) a layer to read short-term and long-term memory
    training, a token   3 times that, and for each layer 4 D^2 to compute the recurrence's gates
                        again, 2 D for each query that the saliency loss looks at, and 3 times
                        UBOO's own; with model.remat the forward pass of the layers once more

Activations are what the backward pass of the traced loss keeps; of one and of two layers, because
every further layer keeps as much as the second.
"""

import dataclasses
import functools
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table

from mmrec_jax.config import Config, ModelConfig
from mmrec_jax.errors import UserError
from mmrec_jax.model.lm import init_state
from mmrec_jax.training.optimizer import make_optimizer
from mmrec_jax.training.step import init_params, model_graph

_EMBEDDING, _NORMS, _READING, _UBOO = "embedding, logits", "norms", "reading memories", "UBOO"
_PARTS = {
    "embedding": _EMBEDDING,
    "W_fused": "q k v z p e",
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


class Flops(NamedTuple):
    """Of matrix products, a token."""

    forward: dict[str, int]  # by part
    training: int


class Memory(NamedTuple):
    """Bytes of a training step, of all devices together."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    state: int  # of the texts of a batch


def count_parameters(model: ModelConfig) -> dict[str, int]:
    """By part."""
    counts = dict.fromkeys(_PARTS.values(), 0)
    for part, x in _named(model):
        counts[part] = counts.get(part, 0) + x.size
    return {part: count for part, count in counts.items() if count}


def count_flops(config: Config) -> Flops:
    """See the top of this file."""
    model, layers = config.model, config.model.num_layers
    forward = Counter()
    for part, x in _named(model):
        if x.ndim == 2:
            forward[part] += 2 * x.size
    seen = model.short_term + model.chunk_len + model.long_term
    forward[_READING] = 4 * model.dim * seen * layers
    of_uboo = forward.pop(_UBOO, 0)  # computed in training alone
    once = sum(forward.values())

    training = 3 * (once + of_uboo) + 4 * model.dim**2 * layers
    again = of_uboo
    if model.long_term and model.saliency_weight:
        length = config.train.seq_len
        queries = length // -(-length // model.saliency_queries)
        again += 2 * model.dim * queries * layers
        training += 2 * model.dim * queries * layers
    if model.remat:
        training += once - forward[_EMBEDDING] + again
        training -= 8 * model.dim**2 * layers  # the last product, by W_2: nobody needs its result
    return Flops(dict(forward), training)


def count_memory(config: Config) -> Memory:
    """Bytes that a training step needs at its largest, but for what the compiler adds."""
    train, params = config.train, _shapes(config.model)
    optimizer = make_optimizer(train, optax.constant_schedule(0.0))
    of_params = _bytes(params)
    return Memory(
        parameters=of_params,
        optimizer=_bytes(jax.eval_shape(optimizer.init, params)),
        gradients=of_params * (2 if train.accumulate_steps > 1 else 1),
        activations=_activations(config),
        state=_bytes(jax.eval_shape(lambda: init_state(config.model, train.batch_size))),
    )


@functools.cache
def _shapes(model: ModelConfig):
    """Of the parameters. All layers are alike, so one is traced."""
    one = dataclasses.replace(model, num_layers=1)
    params = jax.eval_shape(lambda: init_params(one, jax.random.key(0)))
    return {**params, "blocks": dict.fromkeys(range(model.num_layers), params["blocks"][0])}


def _named(model: ModelConfig):
    """Every parameter's shape, with its part."""
    for path, x in jax.tree_util.tree_flatten_with_path(_shapes(model))[0]:
        names = (str(entry.key) for entry in path)
        yield next((_PARTS[name] for name in names if name in _PARTS), _NORMS), x


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _activations(config: Config) -> int:
    layers = config.model.num_layers

    def kept(num_layers: int, remat: bool) -> int:
        return _kept(config, dataclasses.replace(config.model, num_layers=num_layers, remat=remat))

    one, two = kept(1, config.model.remat), kept(2, config.model.remat)
    total = one + (layers - 1) * (two - one)
    if config.model.remat:  # the layer whose turn it is
        total += kept(2, False) - kept(1, False)
    return total


def _kept(config: Config, model: ModelConfig) -> int:
    """Bytes between the forward and the backward pass of a micro-batch, parameters apart."""
    graph, params = model_graph(model), _shapes(model)
    batch = config.train.batch_size // config.train.accumulate_steps
    tokens = jax.ShapeDtypeStruct((batch, config.train.seq_len), jnp.int32)

    def backward(params, tokens):
        def loss(params):
            output = nnx.merge(graph, params)(tokens, tokens, None, jax.random.key(0))
            losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, tokens)
            return losses.mean() + output.aux.saliency + output.aux.uboo

        return jax.vjp(loss, params)[1]

    kept = Counter(
        (x.shape, x.dtype) for x in jax.tree.leaves(jax.eval_shape(backward, params, tokens))
    )
    kept -= Counter((x.shape, x.dtype) for x in jax.tree.leaves(params))
    return sum(count * _bytes(jax.ShapeDtypeStruct(*x)) for x, count in kept.items())


def check_devices(config: Config, devices: int) -> None:
    """Raises UserError where a batch cannot be divided evenly."""
    batch_size = config.train.batch_size
    if devices < 1 or batch_size % devices:
        raise UserError(f"train.batch_size {batch_size} is not divisible by --devices={devices}")


def print_plan(config: Config, devices: int, tokens: int, flops_per_second: float) -> None:
    """Prints what a run costs.

    Args:
        config: of the run.
        devices: among which memory and work are divided evenly.
        tokens: to train on; 0 if the config is to say it.
        flops_per_second: that one device reaches in training; 0 if it is not known.

    Raises:
        UserError: a batch that the devices cannot divide.
    """
    train, model = config.train, config.model
    check_devices(config, devices)
    parameters, flops = count_parameters(model), count_flops(config)
    total, forward = sum(parameters.values()), sum(flops.forward.values())
    print(
        f"{config.name}: {total:,} parameters; V {model.vocab_size:,}, D {model.dim:,}, "
        f"L {model.num_layers}, H {model.num_heads}, K {model.head_dim}, S {model.short_term}, "
        f"C {model.chunk_len}, M {model.long_term}"
    )
    table = _table("", "parameters", "share", "FLOPs a token")
    for part in dict.fromkeys([*parameters, *flops.forward]):
        count = parameters.get(part, 0)
        share = f"{count / total:.1%}" if count else ""
        of_part = f"{flops.forward[part]:,}" if part in flops.forward else ""
        table.add_row(part, f"{count:,}" if count else "", share, of_part)
    table.add_section()
    table.add_row("all, forward", f"{total:,}", "100.0%", f"{forward:,}")
    table.add_row("training", "", "", f"{flops.training:,}")
    Console().print(table)

    memory = count_memory(config)
    table = _table(
        f"{train.batch_size} x {train.seq_len:,} tokens a step", "GB", f"GB a device, of {devices}"
    )
    for name, size in (*memory._asdict().items(), ("all", sum(memory))):
        table.add_row(name, f"{size / 1e9:,.3f}", f"{size / devices / 1e9:,.3f}")
    Console().print(table)
    tokens = tokens or train.fixed_steps * train.step_tokens
    if not tokens:
        print("how long it takes: give --tokens and --flops (a second, that one device reaches)")
        return
    work = tokens * flops.training
    line = f"{tokens:,} tokens: {work:.3g} FLOPs"
    if flops_per_second:
        days = _days(work, devices, flops_per_second)
        line += f", {days:,.2f} days on {devices} x {flops_per_second:.3g} FLOP/s"
    print(line)


def print_plans(configs: list[Config], devices: int, tokens: int, flops_per_second: float) -> None:
    """Prints what each of several runs costs, in a line; arguments as of `print_plan`."""
    table = _table("", "parameters", "FLOPs/token", "tokens a step", "GB", "days")
    for config in configs:
        check_devices(config, devices)
        flops, memory, train = count_flops(config).training, count_memory(config), config.train
        of_run = tokens or train.fixed_steps * train.step_tokens
        days = ""
        if of_run and flops_per_second:
            days = f"{_days(of_run * flops, devices, flops_per_second):,.2f}"
        table.add_row(
            config.name,
            f"{sum(count_parameters(config.model).values()):,}",
            f"{flops:.3g}",
            f"{train.batch_size} x {train.seq_len:,}",
            f"{sum(memory) / devices / 1e9:,.2f}",
            days,
        )
    Console().print(table)
    of_tokens = f"; days of {tokens:,} tokens" if tokens else ""
    print(f"GB a device, of {devices}{of_tokens}")


def _days(work: float, devices: int, flops_per_second: float) -> float:
    return work / (devices * flops_per_second) / 86_400


def _table(first: str, *names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table
