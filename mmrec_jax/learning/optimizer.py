"""AdamW, or Muon for matrices, with warm-up and cosine decay, as one optax chain."""

import jax
import jax.numpy as jnp
import optax

from mmrec_jax.config import TrainConfig
from mmrec_jax.errors import UserError


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


def slower_where(where, rate: float) -> optax.GradientTransformation:
    """Multiplies updates by a rate where `where`, a tree of bools like the parameters, is true."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda x, is_slower: jnp.where(is_slower, rate * x, x), updates, where
        )
    )


def make_optimizer(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, or Muon for kernels and AdamW for all else."""
    update = _muon(config, schedule) if config.optimizer == "muon" else _adamw(config, schedule)
    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.base_dim:
        return optax.chain(clip, update, _rates_of_width(config))
    return optax.chain(clip, update)


def _rates_of_width(config: TrainConfig) -> optax.GradientTransformation:
    """Scales rates that were chosen at D = `base_dim` to other widths (after Yang et al., 2022).

    Adam moves every element by about the learning rate, in directions that agree, so the outputs of
    a map move in proportion to its inputs: the update of maps from D channels, logits included, is
    multiplied by base_dim / D. Biases and norms act on single channels and keep their rate. So does
    Muon, whose update of a map moves its outputs as far at any width.
    """
    scaled = ("embedding",) if config.optimizer == "muon" else ("embedding", "kernel")

    def scale(updates, _):
        ratio = config.base_dim / updates["embedding"]["embedding"].shape[1]
        return jax.tree_util.tree_map_with_path(
            lambda path, x: ratio * x if path[-1].key in scaled else x, updates
        )

    return optax.stateless(scale)


def _adamw(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW without weight decay on vectors (biases, norms)."""
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
    )


def _muon(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024): the update of an m x n kernel is close to orthogonal.

    Its singular values are about sqrt(max(1, n / m)) times the learning rate, so that one rate
    suits every width. Embedding, biases and norms are left to Adam with Nesterov's momentum,
    without weight decay.
    """
    muon = optax.contrib.muon(
        learning_rate=lambda step: config.muon_rate * schedule(step),
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=_muon_dimensions,
        adam_learning_rate=schedule,
        adam_b1=config.b1,
        adam_b2=config.b2,
    )

    def init(params):
        return muon.init(_by_map(params))

    def update(updates, state, params):
        by_map, state = muon.update(_by_map(updates), state, _by_map(params))
        return jax.tree.map(lambda x, like: x.reshape(like.shape), by_map, updates), state

    return optax.GradientTransformation(init, update)


# Kernels that hold several linear maps, which Muon orthogonalizes one by one: how they are
# divided, and which axis is the input's.
_SEVERAL_MAPS = {
    "W_fused": (lambda x: x.reshape(len(x), 6, -1), 0),  # side by side: q k v z p e
    "W_m": (lambda x: x.reshape(2, len(x) // 2, -1), 1),  # one above the other: z, h
}


def _by_map(params):
    """The parameters with an axis for the maps of such kernels."""

    def divide(path, x):
        names = {getattr(entry, "key", None) for entry in path}
        for name in names & _SEVERAL_MAPS.keys() if x.ndim == 2 else ():
            return _SEVERAL_MAPS[name][0](x)
        return x

    return jax.tree_util.tree_map_with_path(divide, params)


def _muon_dimensions(params):
    """For each kernel, its input and its output axis; None for what Muon does not train."""

    def dimensions(path, x):
        names = [getattr(entry, "key", None) for entry in path]
        if names[-1] != "kernel":
            return None
        of_several = [_SEVERAL_MAPS[name][1] for name in names if name in _SEVERAL_MAPS]
        return optax.contrib.MuonDimensionNumbers(*of_several or [0], x.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)
