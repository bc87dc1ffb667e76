"""AdamW, or Muon for matrices, with warm-up and cosine decay, as one optax chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmrec_jax.config import TrainConfig
from mmrec_jax.errors import UserError
from mmrec_jax.learning.sharding import partition
from mmrec_jax.model.layout import by_layer, from_layers, is_gathering
from mmrec_jax.model.params import has_stacked_layers


def learning_rate_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """The learning rate after each number of steps: linear warm-up, then cosine decay to the end.

    Raises:
        UserError: the warm-up is not shorter than the training.
    """
    if config.warmup_steps >= total_steps:
        raise UserError(
            f"train.warmup_steps is {config.warmup_steps}, but training has only {total_steps} "
            "steps; lower it, or train longer"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=config.initial_learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=total_steps,
        end_value=config.final_learning_rate,
    )


def slower_where(where: Callable[[], Any], rate: float) -> optax.GradientTransformation:
    """Multiplies updates by a rate where `where()`, a tree of bools like them, is true."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda x, is_slower: jnp.where(is_slower, rate * x, x), updates, where()
        )
    )


def make_optimizer(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, or Muon for kernels and AdamW for all else."""
    muon = config.optimizer == "muon"
    update = _muon(config, schedule) if muon else _adamw(config, schedule)
    if config.base_dim:
        update = optax.chain(update, _rates_of_width(config, "p" if muon else "kernel"))
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, _by_map(update) if muon else update)


def _rates_of_width(config: TrainConfig, map_name: str) -> optax.GradientTransformation:
    """Scales rates that were chosen at D = `base_dim` to other widths (after Yang et al., 2022).

    Adam moves every element by about the learning rate, in directions that agree, so the outputs of
    a map move in proportion to its inputs: the update of maps from D channels, logits included, is
    multiplied by base_dim / D. Biases and norms act on single channels and keep their rate. So does
    Muon, whose update of a map moves its outputs as far at any width.

    Args:
        config: of the training.
        map_name: the name of the maps that Adam trains.
    """

    def scale(updates, _):
        ratio = config.base_dim / updates["embedding"]["embedding"].shape[1]
        return jax.tree_util.tree_map_with_path(
            lambda path, x: ratio * x if path[-1].key in ("embedding", map_name) else x, updates
        )

    return optax.stateless(scale)


def _adamw(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW without weight decay on vectors (biases, norms)."""
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )


def _is_matrix(params):
    """Which parameters have two axes or more, besides that of stacked layers."""
    stacked = has_stacked_layers(params)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.ndim - (stacked and path[0].key == "blocks") >= 2, params
    )


def _muon(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024): the update of an m x n kernel is close to orthogonal.

    Its singular values are about sqrt(max(1, n / m)) times the learning rate, so that one rate
    suits every width. Embedding, biases, norms and the map of p are left to Adam with Nesterov's
    momentum, without weight decay. Of p, only a few sums of channels have an effect
    (`Block.evidence`): an orthogonal update would move them as far when their gradient is noise.
    """
    return optax.contrib.muon(
        learning_rate=lambda step: config.muon_rate * schedule(step),
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=_muon_dimensions,
        adam_learning_rate=schedule,
        adam_b1=config.b1,
        adam_b2=config.b2,
    )


def _muon_dimensions(params):
    """For each kernel, its input and its output axis; None for what Muon does not train.

    Axes count from the last, because stacked layers have one more (`params.stack_layers`).
    """

    def dimensions(path, x):
        names = {getattr(entry, "key", None) for entry in path}
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(-3 if "W_fused" in names else -2, -1)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _by_map(update: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies an update to trees in which kernels that hold several linear maps are divided."""

    def divided(of_updates, state, params):
        # To divide kernels, and to make their updates orthogonal, takes complete matrices.
        before = of_updates, state
        of_updates, state, params = _by_layer((of_updates, state, params))
        by_map, state = update.update(_divide(of_updates), state, _divide(params))
        return _as_before((jax.tree.map(_whole, of_updates, by_map), state), before)

    return optax.GradientTransformation(lambda params: update.init(_divide(params)), divided)


def _by_layer(tree):
    """Trees of parameters; of stacked layers, each device has some with all of their matrices."""
    return _map_layers(by_layer, tree)


def _as_before(tree, before):
    """The opposite of `_by_layer`."""

    def divide(x, like):
        layout = partition((), like.shape, jax.sharding.get_abstract_mesh())
        return from_layers(x, len(like), layout)

    return _map_layers(divide, tree, before)


def _map_layers(function, tree, *more):
    """Applies a function to the matrices of stacked layers, if devices share the parameters."""

    def map_part(part, *others):
        if not has_stacked_layers(part):
            return part
        blocks = (other["blocks"] for other in others)
        mapped = jax.tree.map(
            lambda x, *xs: function(x, *xs) if x.ndim > 2 else x, part["blocks"], *blocks
        )
        return {**part, "blocks": mapped}

    if not is_gathering():
        return tree
    return jax.tree.map(map_part, tree, *more, is_leaf=has_stacked_layers)


_P = 4  # the place of p's map in W_fused


def _divide(params):
    """The parameters, with an axis for the maps in W_m and W_fused, and the map of p by itself."""

    def divide(path, x):
        names = {getattr(entry, "key", None) for entry in path}
        if "kernel" in names and "W_m" in names:  # one above the other: z, h
            return x.reshape(*x.shape[:-2], 2, x.shape[-2] // 2, x.shape[-1])
        if "kernel" in names and "W_fused" in names:  # side by side: q k v z p e
            maps = x.reshape(*x.shape[:-1], 6, x.shape[-1] // 6)
            return {"kernel": jnp.delete(maps, _P, axis=-2), "p": maps[..., _P, :]}
        return x

    return jax.tree_util.tree_map_with_path(divide, params)


def _whole(like, x):
    """The opposite of `_divide`, for one kernel."""
    if isinstance(x, dict):
        kernel, p = x["kernel"], x["p"][..., None, :]
        x = jnp.concatenate([kernel[..., :_P, :], p, kernel[..., _P:, :]], axis=-2)
    return x.reshape(like.shape)
