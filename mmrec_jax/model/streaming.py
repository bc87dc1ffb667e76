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

        def one():
            new_logits, new_state = function(tokens[rows, inside], documents[rows, inside], state)
            targets = jnp.where(wanted[:, None], positions, time)  # time: nowhere
            return (
                choose(wanted, new_state, state),
                logits.at[rows, targets].set(new_logits, mode="drop"),
                jnp.where(wanted, done + count, done),
            )

        return lax.cond(jnp.any(wanted), one, lambda: carry)

    def single(tokens, documents, state):
        output = model.step(tokens[:, 0], documents[:, 0], state)
        return output.logits[:, None], output.state

    def chunk(tokens, documents, state):
        output = model(tokens, documents, state)
        return output.logits, output.state

    def single_steps(carry, count, wanted):
        def body(carry, _):
            return read(carry, 1, wanted(*carry) & (carry[2] < lengths), single), None

        return lax.scan(body, carry, length=min(count, time))[0] if count else carry

    def chunks(carry, _):
        state, _, done = carry
        wanted = (state.place == 0) & (done + chunk_len <= lengths)
        return read(carry, chunk_len, wanted, chunk), None

    carry = (state, logits, jnp.zeros(batch, jnp.int32))
    if time >= chunk_len:
        carry = single_steps(carry, chunk_len - 1, lambda state, *_: state.place != 0)
        carry, _ = lax.scan(chunks, carry, length=time // chunk_len)
    carry = single_steps(carry, chunk_len - 1 + (time < chunk_len), lambda *_: True)
    state, logits, _ = carry
    return logits, state
