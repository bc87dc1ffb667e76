"""The loss of a batch, and the training step: a pure function under `jax.jit`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mmrec_jax.config import Config
from mmrec_jax.data.batches import Batch
from mmrec_jax.model.block import param_dtype
from mmrec_jax.model.interface import ModelFunctions, mmrec
from mmrec_jax.model.memory import choose
from mmrec_jax.model.over_time import NO_EFFORT, Effort
from mmrec_jax.model.params import Params


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]  # number of steps done
    params: Params
    opt_state: optax.OptState
    memory: Any = None  # if it is carried: the state of the lanes, [groups, batch, ..]


class StepMetrics(NamedTuple):
    """What a step reports; nothing in it is fetched before the next step runs."""

    loss: Float[Array, ""]  # mean cross-entropy in nats per token
    saliency_loss: Float[Array, ""]
    uboo_loss: Float[Array, ""]
    grad_norm: Float[Array, ""]  # before clipping
    stop: Int[Array, ""]  # the highest number of a stop signal that any process has received, or 0
    # Of all layers, forward and backward, if the recurrence is computed in parallel.
    recurrence_sweeps: Float[Array, ""] | None = None
    recurrence_scans: Float[Array, ""] | None = None  # solutions that the sweeps did not find


def init_train_state(
    config: Config,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    params: Params | None = None,
    model: ModelFunctions | None = None,
) -> TrainState:
    """The state before the first step, with newly initialized parameters unless they are given.

    `model` is MM-Rec unless another language model is given.
    """
    model = mmrec(config.model) if model is None else model
    params = model.init_params(key) if params is None else params
    memory, train = None, config.train
    if train.carry_memory:
        memory = model.init_state(train.lanes)
        memory = jax.tree.map(
            lambda x: x.reshape(train.carry_groups, train.batch_size, *x.shape[1:]), memory
        )
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), memory)


def abstract_batch(rows: int, seq_len: int, sharding: Sharding | None = None) -> Batch:
    """The shapes and dtypes of a batch, and its sharding on a mesh."""

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    ids, weights = array(jnp.int32, rows, seq_len), array(jnp.float32, rows, seq_len)
    return Batch(ids, ids, ids, weights, fresh=array(bool, rows))


def begin(model: ModelFunctions, memory: Any, batch: Batch) -> Any:
    """The memory that a batch starts from: an empty state where a sequence is fresh."""
    if memory is None:
        return None
    return choose(batch.fresh, model.init_state(len(batch.tokens)), memory)


def with_noise(
    tokens: Int[Array, "batch T"], rate: float, vocab_size: int, key: PRNGKeyArray
) -> Int[Array, "batch T"]:
    """Replaces a share of the tokens by ids drawn uniformly (Xie et al., 2017).

    It is meant against learning a small corpus by heart. Ids that the corpus does not use are drawn
    as well, and act as blanks.
    """
    is_replaced, replacements = jax.random.split(key)
    noise = jax.random.randint(replacements, tokens.shape, 0, vocab_size)
    return jnp.where(jax.random.bernoulli(is_replaced, rate, tokens.shape), noise, tokens)


def training_loss(
    config: Config,
    model: ModelFunctions,
    params: Params,
    batch: Batch,
    memory,
    total_weight,
    key,
    of_gradient: Effort | None = None,
):
    """What training minimizes, for one micro-batch.

    Args:
        config, model, params, batch: those of the run, and the micro-batch.
        memory: the state that its sequences start from; None: an empty one, and none is returned.
        total_weight: number of predictions in the complete batch.
        key: for token noise, dropout and the sample of queries of the saliency loss.
        of_gradient: its gradient is the effort of the gradients of the recurrences; None if they
            are computed by scans.

    Returns:
        The objective, then (cross-entropy in nats per token, saliency loss, UBOO loss), the effort
        of the recurrences themselves, and the memory after the batch.
    """
    tokens, noise = batch.tokens, config.train.token_noise
    if noise:
        key, noise_key = jax.random.split(key)
        tokens = with_noise(tokens, noise, config.model.vocab_size, noise_key)
    counting = {} if of_gradient is None else {"of_gradient": of_gradient}
    output = model.apply(
        params, tokens, batch.documents, memory, key, scored=batch.weights > 0, **counting
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
    loss = jnp.sum(losses * batch.weights) / total_weight
    saliency, uboo, effort = output.aux
    saliency /= config.train.accumulate_steps
    uboo /= config.train.accumulate_steps
    objective = loss + config.model.saliency_weight * saliency + config.model.uboo_weight * uboo
    state = None if memory is None else output.state
    effort = None if of_gradient is None else effort
    return objective, ((loss, saliency, uboo), effort, state)


def make_train_step(
    config: Config,
    optimizer: optax.GradientTransformation,
    model: ModelFunctions | None = None,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The jitted step. It donates the state. Its randomness depends only on the seed and the step.

    With `train.carry_memory`, a sequence that is not fresh starts from the state in which its lane
    was left when its group had its last turn. That state is an input, so no gradient flows back
    into it. `model` is MM-Rec unless another language model is given. `shardings` are those of the
    state on a mesh (sharding.py).

    The step has a third argument if there are several processes: for each device, the number of the
    stop signal that its process has received, or 0. So all processes learn of it at the same step.
    """
    model = mmrec(config.model) if model is None else model
    micro_batches = config.train.accumulate_steps
    seed = config.train.seed
    no_effort = NO_EFFORT if model.counts_effort else None

    def gradients(params, batch: Batch, memory, key):
        """Gradients, losses, the effort of the recurrences, and the new memory."""
        total_weight = jnp.maximum(jnp.sum(batch.weights), 1)
        objective = functools.partial(training_loss, config, model)

        def gradient(batch, memory, key):
            (grads, of_gradient), (losses, effort, memory) = jax.grad(
                objective, argnums=(0, 5), has_aux=True
            )(params, batch, memory, total_weight, key, no_effort)
            return (grads, losses, jax.tree.map(jnp.add, effort, of_gradient)), memory

        if micro_batches == 1:
            sums, memory = gradient(batch, memory, key)
            return *sums, memory

        def accumulate(sums, x):
            micro_batch, micro_memory, index = x
            of_batch, new_memory = gradient(
                micro_batch, micro_memory, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, sums, of_batch), new_memory

        # Each device keeps its sequences: of n micro-batches, the first has rows 0, n, 2n, ...
        def divide(x):  # without -1 in the shape, because a memory without slots has no elements
            parts = x.reshape(len(x) // micro_batches, micro_batches, *x.shape[1:])
            return jnp.swapaxes(parts, 0, 1)

        def join(parts):
            x = jnp.swapaxes(parts, 0, 1)
            return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

        split = jax.tree.map(divide, (batch, memory))
        losses = (jnp.zeros((), param_dtype(config.model)),) * 3
        zeros = jax.tree.map(jnp.zeros_like, params), losses, no_effort
        with jax.named_scope("micro_batches"):
            sums, memory = jax.lax.scan(accumulate, zeros, (*split, jnp.arange(micro_batches)))
        return *sums, jax.tree.map(join, memory)

    def step(state: TrainState, batch: Batch, stop: Int[Array, "devices"] | None = None):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        group = state.step % config.train.carry_groups
        memory = begin(model, jax.tree.map(lambda x: x[group], state.memory), batch)
        grads, losses, effort, memory = gradients(state.params, batch, memory, key)
        memory = jax.tree.map(lambda x, new: x.at[group].set(new), state.memory, memory)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        stop = jnp.zeros((), jnp.int32) if stop is None else stop.max()
        metrics = StepMetrics(*losses, optax.tree.norm(grads), stop, *(effort or ()))
        after = TrainState(state.step + 1, params, opt_state, memory)
        if config.train.on_not_finite == "skip":
            is_good = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
            before = state._replace(step=after.step)
            after = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), after, before)
        return after, metrics

    # The metrics are on every device, as the step's number is.
    placed = None if shardings is None else (shardings, shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=placed)
