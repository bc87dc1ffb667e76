"""The loss of a batch: cross-entropy, and the auxiliary losses of the model."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmrec_jax.config import Config, ModelConfig
from mmrec_jax.data.batches import Batch
from mmrec_jax.model.lm import State, init_state
from mmrec_jax.model.memory import choose
from mmrec_jax.model.params import Params, model_graph


def training_loss(config: Config, params: Params, batch: Batch, memory, total_weight, key):
    """What training minimizes, for one micro-batch.

    Args:
        config: the config of the run.
        params: the model's parameters.
        batch: the micro-batch.
        memory: the state that its sequences start from; None: an empty one, and none is returned.
        total_weight: number of predictions in the complete batch.
        key: for dropout and the sample of queries of the saliency loss.

    Returns:
        The objective, then (cross-entropy in nats per token, saliency loss, UBOO loss) and the
        memory after the batch.
    """
    output = nnx.merge(model_graph(config.model), params)(
        batch.tokens, batch.documents, memory, key
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
    loss = jnp.sum(losses * batch.weights) / total_weight
    aux = jax.tree.map(lambda x: x / config.train.accumulate_steps, output.aux)
    objective = (
        loss + config.model.saliency_weight * aux.saliency + config.model.uboo_weight * aux.uboo
    )
    return objective, ((loss, aux.saliency, aux.uboo), None if memory is None else output.state)


def begin(config: ModelConfig, memory: State | None, batch: Batch) -> State | None:
    """The memory that a batch starts from: an empty state where a sequence is fresh."""
    if memory is None:
        return None
    return choose(batch.fresh, init_state(config, len(batch.tokens)), memory)
