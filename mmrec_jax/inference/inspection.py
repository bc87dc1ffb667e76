"""What happens inside a model as it reads: saliencies, what the bank keeps, and half-lives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.bank import Saliency, directions
from mmrec_jax.model.lm import MMRec, init_state
from mmrec_jax.model.memory import Segments
from mmrec_jax.model.memory_sequence import select_salient
from mmrec_jax.model.params import Params, model_graph
from mmrec_jax.model.recurrence import gates


class Inside(NamedTuple):
    """What happened inside a model while it read a text of T tokens from an empty state."""

    # [layers, heads, T]: s of what is remembered of each token; sigma(s) is the predicted use at
    # age 0. In heads with shifted keys it comes from the token before.
    saliency: np.ndarray
    kept: np.ndarray  # bool [layers, heads, T]: in long-term memory at the end of the text
    short_term: np.ndarray  # bool [T]: in short-term memory or the current chunk at the end
    half_life: np.ndarray  # [layers, D]: tokens until a channel of h has decayed to one half


def look_inside(config: ModelConfig, params: Params, tokens: np.ndarray) -> Inside:
    """Reads a text and reports what happens inside the model.

    The half-life of a channel is computed from the geometric mean over the text of its factor
    gamma_t + mu (1 - m_t + gamma_t) on h_{t-1}; feedback through the gates is ignored.

    Args:
        config, params: those of the model.
        tokens: token ids, int32 [T], at least one.
    """
    time, chunk_len = len(tokens), config.chunk_len
    graph = model_graph(config)
    padded = np.pad(tokens, (0, -time % chunk_len))[None]

    @jax.jit
    def look(params):
        s, direction, half_life = _look(nnx.merge(graph, params), padded, time)
        return s.s, half_life, *_bank(config, s, direction)

    saliency, half_life, index, bank_s = map(np.asarray, look(params))
    kept = np.zeros(saliency.shape, bool)
    for layer, head in np.ndindex(kept.shape[:2]):
        kept[layer, head, index[layer, head][np.isfinite(bank_s[layer, head])]] = True
    left = max(time // chunk_len * chunk_len - config.short_term, 0)
    return Inside(saliency, kept, np.arange(time) >= left, half_life)


def _look(model: MMRec, tokens, time):
    """Saliencies, directions and half-lives of one text."""
    config, state = model.config, init_state(model.config, 1)
    start = jnp.arange(tokens.shape[1])[None] == 0
    short = jnp.full((1, config.short_term), -1)
    segments = Segments(start, jnp.ones(tokens.shape, jnp.int32), short)
    x, remembered, half_lives = model.embedding(tokens), [], []
    for block, layer_state in zip(model.blocks, state.layers, strict=True):
        u = block.norm1(x)
        weights = block.split_weights()
        _, k, v, z, _ = block.project(u, weights)
        core = block.core(z, block.decay(z, k), weights)
        _, h_prev, _ = block.recur(core, start, layer_state.h)
        _, _, f = gates(*core, h_prev, config.mu)
        half_lives.append(-jnp.log(2) / jnp.mean(jnp.log(f[0, :time]), axis=0))
        k, s = block.remembered(block.heads(k), block.evidence(u, weights), start, layer_state)
        of_tokens = s, directions(k, block.heads(v))
        remembered.append(jax.tree.map(lambda x: x[0, :, :time], of_tokens))
        x, _, _ = block(x, segments, layer_state)
    s, direction = jax.tree.map(lambda *layers: jnp.stack(layers), *remembered)
    return s, direction, jnp.stack(half_lives)


def _bank(config: ModelConfig, s: Saliency, direction):
    """Positions and saliencies of the tokens in the bank after the complete chunks of a text."""
    layers, _, time = s.s.shape
    num_chunks = time // config.chunk_len
    nothing = config.long_term + config.short_term  # empty places before the text
    room = ((0, 0), (0, 0), (nothing, 0))
    s, direction = jax.tree.map(lambda x: x[:, :, : num_chunks * config.chunk_len], (s, direction))
    s = Saliency(jnp.pad(s.s, room, constant_values=-jnp.inf), jnp.pad(s.fading, room))
    direction = jnp.pad(direction, (*room, (0, 0)))
    position = jnp.broadcast_to(jnp.arange(s.s.shape[2]) - nothing, s.s.shape)
    # Layers take the place of a batch: both are independent. All tokens are of document 1.
    of_tokens, of_chunks = (
        jnp.ones((layers, count), jnp.int32) for count in (s.s.shape[2], num_chunks)
    )
    index, kept_s = select_salient(config, s, position, of_tokens, direction, of_chunks)
    return index[:, :, -1] - nothing, kept_s[:, :, -1]
