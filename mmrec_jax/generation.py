"""Text from a trained model."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrec_jax.config import ModelConfig
from mmrec_jax.errors import UserError
from mmrec_jax.model.lm import init_state
from mmrec_jax.training.step import Params, model_graph


def generate(
    config: ModelConfig,
    params: Params,
    prompt: np.ndarray,
    used_vocab: int,
    max_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Samples tokens one after the other.

    Whole chunks go into the state; the chunk that is being written is read again for each token.
    So the cost of a token does not grow with the text.

    Args:
        config: the model's.
        params: its parameters.
        prompt: token ids, int32 [tokens], at least one.
        used_vocab: ids from here on are never sampled (the tokenizer does not use them).
        max_tokens: how many to sample.
        temperature: of the softmax; 0 takes the most likely token.
        seed: of the sampling.

    Raises:
        UserError: an empty prompt.
    """
    if not len(prompt):
        raise UserError("the prompt is empty; give at least one character")
    graph, chunk_len = model_graph(config), config.chunk_len
    documents = jnp.zeros((1, chunk_len), jnp.int32)

    @jax.jit
    def read(params, chunk, state):
        output = nnx.merge(graph, params)(chunk, documents, state)
        return output.logits[0, :, :used_vocab], output.state

    @jax.jit
    def sample(logits, key):
        scaled = logits / jnp.maximum(temperature, 1e-6)
        return jnp.where(
            temperature > 0, jax.random.categorical(key, scaled), jnp.argmax(logits, axis=-1)
        )

    def padded(tokens):
        chunk = np.zeros((1, chunk_len), np.int32)
        chunk[0, : len(tokens)] = tokens
        return chunk

    state, tail = init_state(config, 1), list(prompt)
    key = jax.random.key(seed)
    for index in range(max_tokens):
        while len(tail) > chunk_len:
            _, state = read(params, padded(tail[:chunk_len]), state)
            tail = tail[chunk_len:]
        logits, _ = read(params, padded(tail), state)
        token = int(sample(logits[len(tail) - 1], jax.random.fold_in(key, index)))
        tail.append(token)
        yield token
