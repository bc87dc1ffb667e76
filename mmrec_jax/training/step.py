"""The training step and the evaluation step: pure functions under `jax.jit`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mmrec_jax.config import Config, ModelConfig
from mmrec_jax.data.stream import Batch
from mmrec_jax.model.lm import MMRec

Params = Any  # nested dicts of arrays, named as the model's attributes


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]  # steps done
    params: Params
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """What a step tells; nothing in it is fetched before the next step runs."""

    loss: Float[Array, ""]  # mean cross-entropy in nats per token
    saliency_loss: Float[Array, ""]
    uboo_loss: Float[Array, ""]
    grad_norm: Float[Array, ""]  # before clipping


class EvalSums(NamedTuple):
    loss: Float[Array, ""]  # nats
    correct: Float[Array, ""]  # tokens whose most likely prediction was right
    tokens: Float[Array, ""]


def model_graph(config: ModelConfig) -> nnx.GraphDef:
    """The structure of the model; with parameters, `nnx.merge` makes the model of it."""
    return nnx.split(nnx.eval_shape(lambda: MMRec(config, nnx.Rngs(0))))[0]


def init_params(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters."""

    def init(key):
        _, params = nnx.split(MMRec(config, nnx.Rngs(key)), nnx.Param)
        return nnx.to_pure_dict(params)

    return jax.jit(init)(key)


def init_train_state(
    config: Config, optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> TrainState:
    """The state before the first step."""
    params = init_params(config.model, key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    config: Config, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The jitted step. It donates the state; dropout depends on the seed and the step alone."""
    graph = model_graph(config.model)
    micro_batches = config.train.accumulate_steps
    seed = config.train.seed

    def loss_fn(params, batch: Batch, total_weight, key):
        output = nnx.merge(graph, params)(batch.tokens, batch.documents, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
        loss = jnp.sum(losses * batch.weights) / total_weight
        aux = jax.tree.map(lambda x: x / micro_batches, output.aux)
        objective = (
            loss + config.model.saliency_weight * aux.saliency + config.model.uboo_weight * aux.uboo
        )
        return objective, (loss, aux.saliency, aux.uboo)

    def gradients(params, batch: Batch, key):
        total_weight = jnp.maximum(jnp.sum(batch.weights), 1)
        gradient = jax.grad(loss_fn, has_aux=True)
        if micro_batches == 1:
            return gradient(params, batch, total_weight, key)

        def accumulate(sums, x):
            micro_batch, index = x
            new = gradient(params, micro_batch, total_weight, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, new), None

        split = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
        shapes = jax.eval_shape(gradient, params, batch, total_weight, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(accumulate, zeros, (split, jnp.arange(micro_batches)))[0]

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, losses = gradients(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(*losses, grad_norm=optax.tree.norm(grads))
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(config: ModelConfig) -> Callable[[Params, Batch], EvalSums]:
    """The jitted evaluation of one batch, without dropout."""
    graph = model_graph(config)

    def step(params: Params, batch: Batch) -> EvalSums:
        logits = nnx.merge(graph, params)(batch.tokens, batch.documents).logits
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        correct = jnp.argmax(logits, axis=-1) == batch.targets
        return EvalSums(
            loss=jnp.sum(losses * batch.weights),
            correct=jnp.sum(correct * batch.weights),
            tokens=jnp.sum(batch.weights),
        )

    return jax.jit(step)
