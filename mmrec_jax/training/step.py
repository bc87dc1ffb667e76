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
from mmrec_jax.model.block import param_dtype
from mmrec_jax.model.lm import MMRec, State, init_state
from mmrec_jax.model.memory import choose

Params = Any  # nested dicts of arrays, named as the model's attributes


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]  # steps done
    params: Params
    opt_state: optax.OptState
    memory: State | None = None  # what the lanes have read, where memory is carried


class StepMetrics(NamedTuple):
    """What a step tells; nothing in it is fetched before the next step runs."""

    loss: Float[Array, ""]  # mean cross-entropy in nats per token
    saliency_loss: Float[Array, ""]
    uboo_loss: Float[Array, ""]
    grad_norm: Float[Array, ""]  # before clipping


class EvalTokens(NamedTuple):
    """What an evaluation step tells of each token."""

    loss: Float[Array, "batch T"]  # nats; 0 where nothing is predicted
    correct: Float[Array, "batch T"]  # 1 where the most likely prediction was right


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
    config: Config,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    params: Params | None = None,
) -> TrainState:
    """The state before the first step: of fresh parameters, unless some are given."""
    params = init_params(config.model, key) if params is None else params
    memory = None
    if config.train.carry_memory:
        memory = init_state(config.model, config.train.batch_size)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), memory)


def make_train_step(
    config: Config, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The jitted step. It donates the state; dropout depends on the seed and the step alone.

    With `train.carry_memory` a sequence that is not fresh starts from what its lane had read in the
    step before. That is an input, so no gradient goes back into it.
    """
    graph = model_graph(config.model)
    micro_batches = config.train.accumulate_steps
    seed = config.train.seed

    def loss_fn(params, batch: Batch, memory, total_weight, key):
        output = nnx.merge(graph, params)(batch.tokens, batch.documents, memory, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
        loss = jnp.sum(losses * batch.weights) / total_weight
        aux = jax.tree.map(lambda x: x / micro_batches, output.aux)
        objective = (
            loss + config.model.saliency_weight * aux.saliency + config.model.uboo_weight * aux.uboo
        )
        return objective, ((loss, aux.saliency, aux.uboo), None if memory is None else output.state)

    def gradients(params, batch: Batch, memory, key):
        """Gradients, losses and the new memory."""
        total_weight = jnp.maximum(jnp.sum(batch.weights), 1)
        gradient = jax.grad(loss_fn, has_aux=True)
        if micro_batches == 1:
            grads, (losses, memory) = gradient(params, batch, memory, total_weight, key)
            return grads, losses, memory

        def accumulate(sums, x):
            micro_batch, micro_memory, index = x
            new_key = jax.random.fold_in(key, index)
            grads, (losses, new_memory) = gradient(
                params, micro_batch, micro_memory, total_weight, new_key
            )
            return jax.tree.map(jnp.add, sums, (grads, losses)), new_memory

        def divide(x):  # no -1 in the shapes: a memory without slots has no elements
            return x.reshape(micro_batches, len(x) // micro_batches, *x.shape[1:])

        split = jax.tree.map(divide, (batch, memory))
        losses = (jnp.zeros((), param_dtype(config.model)),) * 3
        zeros = jax.tree.map(jnp.zeros_like, params), losses
        (grads, losses), memory = jax.lax.scan(
            accumulate, zeros, (*split, jnp.arange(micro_batches))
        )
        memory = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), memory)
        return grads, losses, memory

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        memory = _begin(config.model, state.memory, batch)
        grads, losses, memory = gradients(state.params, batch, memory, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(*losses, grad_norm=optax.tree.norm(grads))
        return TrainState(state.step + 1, params, opt_state, memory), metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    config: ModelConfig,
) -> Callable[[Params, Batch, State | None], tuple[EvalTokens, State | None]]:
    """The jitted evaluation of one batch, without dropout; it carries memory if it is given one."""
    graph = model_graph(config)

    def step(params: Params, batch: Batch, memory: State | None):
        memory = _begin(config, memory, batch)
        output = nnx.merge(graph, params)(batch.tokens, batch.documents, memory)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
        correct = jnp.argmax(output.logits, axis=-1) == batch.targets
        tokens = EvalTokens(losses * batch.weights, correct * batch.weights)
        return tokens, None if memory is None else output.state

    return jax.jit(step)


def _begin(config: ModelConfig, memory: State | None, batch: Batch) -> State | None:
    """The memory that a batch starts from: nothing read, where a sequence is fresh."""
    if memory is None:
        return None
    return choose(batch.fresh, init_state(config, len(batch.tokens)), memory)
