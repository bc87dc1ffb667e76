"""Reading texts of any length into a state: the model's two forms put together."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

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

    Each text goes token by token to the end of the chunk that it stands in, then whole chunks at a
    time, then token by token again.

    Args:
        model: the model.
        state: what was read before; texts may stand at different places in their chunks.
        tokens: token ids.
        documents: ids of the tokens' documents; None: all are of the document that the state
            stands in (of document 0 where nothing was read).
        lengths: how many tokens of each text to read; None: all.

    Returns:
        Logits of the next token (beyond a text's length they mean nothing), and the new state.
    """
    batch, time = tokens.shape
    chunk_len = model.config.chunk_len
    if documents is None:
        documents = jnp.broadcast_to(jnp.maximum(state.document, 0)[:, None], tokens.shape)
    if lengths is None:
        lengths = jnp.full(batch, time, jnp.int32)
    vocab = model.embedding.embedding.shape[0]
    dtype = jax.eval_shape(model.step, tokens[:, 0], documents[:, 0], state).logits.dtype
    logits = jnp.zeros((batch, time, vocab), dtype)
    rows = jnp.arange(batch)[:, None]

    def read(carry, count, wanted, function):
        """Reads `count` tokens of those texts that want it, each from where it stands."""
        state, logits, done = carry
        positions = done[:, None] + jnp.arange(count)
        inside = jnp.minimum(positions, time - 1)
        new_logits, new_state = function(tokens[rows, inside], documents[rows, inside], state)
        targets = jnp.where(wanted[:, None], positions, time)  # time: nowhere
        return (
            choose(wanted, new_state, state),
            logits.at[rows, targets].set(new_logits, mode="drop"),
            jnp.where(wanted, done + count, done),
        )

    def single(tokens, documents, state):
        output = model.step(tokens[:, 0], documents[:, 0], state)
        return output.logits[:, None], output.state

    def chunk(tokens, documents, state):
        output = model(tokens, documents, state)
        return output.logits, output.state

    def left(carry):
        return jnp.any(carry[2] < lengths)

    def advance(carry):
        """Single tokens as long as a text needs them, so that chunks are read together."""
        state, _, done = carry
        whole = (state.place == 0) & (done + chunk_len <= lengths)
        singly = ~whole & (done < lengths)
        if time < chunk_len:
            return read(carry, 1, singly, single)
        return lax.cond(
            jnp.any(singly),
            lambda: read(carry, 1, singly, single),
            lambda: read(carry, chunk_len, whole, chunk),
        )

    carry = (state, logits, jnp.zeros(batch, jnp.int32))
    state, logits, _ = lax.while_loop(left, advance, carry)
    return logits, state
