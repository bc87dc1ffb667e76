"""AdamW with warm-up and cosine decay, as one optax chain."""

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
    """Clipping by global norm, then AdamW without weight decay on vectors (biases, norms)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )
