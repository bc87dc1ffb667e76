"""Reads texts of any length into a state, by combining the model's two forms."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mmrec_jax.model.block import param_dtype
from mmrec_jax.model.lm import MMRec, State
from mmrec_jax.model.memory import choose


def extend(
    model: MMRec,
    state: State,
    tokens: Int[Array, "batch T"],
    documents: Int[Array, "batch T"] | None = None,
    lengths: Int[Array, "batch"] | None = None,
) -> tuple[Float[Array, "batch T vocab"], State]:
    """Reads any number of tokens from any state: a pure function.

    Each sequence is read token by token to the end of its current chunk, then in complete chunks,
    then token by token again.

    Args:
        state: the state before the tokens; sequences may be at different positions in their chunks.
        documents: document ids of the tokens; None: all belong to the last document of the state
            (document 0 if the state is empty).
        lengths: how many tokens of each sequence to read; None: all.

    Returns:
        Logits of the next token (meaningless beyond a sequence's length), and the new state.
    """
    batch, time = tokens.shape
    chunk_len = model.config.chunk_len
    if documents is None:
        documents = jnp.broadcast_to(jnp.maximum(state.document, 0)[:, None], tokens.shape)
    if lengths is None:
        lengths = jnp.full(batch, time, jnp.int32)
    logits = jnp.zeros((batch, time, model.config.vocab_size), param_dtype(model.config))
    rows = jnp.arange(batch)[:, None]

    def read(carry, count, wanted, function):
        """Reads the next `count` tokens of the sequences for which `wanted` is true."""
        state, logits, done = carry
        positions = done[:, None] + jnp.arange(count)
        inside = jnp.minimum(positions, time - 1)
        output = function(tokens[rows, inside], documents[rows, inside], state)
        targets = jnp.where(wanted[:, None], positions, time)  # out of range: dropped
        return (
            choose(wanted, output.state, state),
            logits.at[rows, targets].set(output.logits, mode="drop"),
            jnp.where(wanted, done + count, done),
        )

    def single(tokens, documents, state):
        output = model.step(tokens[:, 0], documents[:, 0], state)
        return output._replace(logits=output.logits[:, None])

    def advance(carry):
        """Reads single tokens while any sequence needs them, so that chunks are read together."""
        state, _, done = carry
        whole = (state.place == 0) & (done + chunk_len <= lengths)
        singly = ~whole & (done < lengths)
        if time < chunk_len:
            return read(carry, 1, singly, single)
        return lax.cond(
            jnp.any(singly),
            lambda: read(carry, 1, singly, single),
            lambda: read(carry, chunk_len, whole, model),
        )

    start = state, logits, jnp.zeros(batch, jnp.int32)
    state, logits, _ = lax.while_loop(lambda carry: jnp.any(carry[2] < lengths), advance, start)
    return logits, state
