"""The language model: embedding, blocks, final norm, and logits from the embedding matrix."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model import layout
from mmrec_jax.model.bank import Saliency
from mmrec_jax.model.block import Aux, Block, LayerState, RMSNorm, Weights, param_dtype
from mmrec_jax.model.initializers import compiled
from mmrec_jax.model.memory import FOUND, MemoryState, Place, Segments
from mmrec_jax.model.over_time import NO_EFFORT, Effort

NO_DOCUMENT = -1  # the document of an empty state


class State(NamedTuple):
    """Everything that the model remembers of a text. Its size is constant."""

    layers: tuple[LayerState, ...]
    document: Int[Array, "batch"]  # id of the last token's document
    place: Int[Array, "batch"]  # position of the next token in its chunk
    live: Bool[Array, "batch near"]  # which near tokens (memory.py) belong to that document


class Output(NamedTuple):
    """The result of reading tokens. The logits of `step` have no axis T."""

    logits: Float[Array, "batch *T vocab"]  # of the next token; float32 or wider
    state: State
    aux: Aux  # saliency averaged over layers, everything else summed


def init_state(config: ModelConfig, batch: int) -> State:
    """The empty state of `batch` sequences. No two arrays share a buffer: a step donates them."""
    near, dtype = config.short_term + config.chunk_len, jnp.dtype(config.dtype)
    wide = param_dtype(config)

    def slots(count):  # keys, values and saliencies
        shape = batch, config.num_heads, count, config.head_dim
        s = Saliency(jnp.full(shape[:-1], -jnp.inf, wide), jnp.zeros(shape[:-1], wide))
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), s

    def layer():
        distance = jnp.zeros((batch, config.num_heads, config.long_term), jnp.int32)
        return LayerState(
            h=jnp.zeros((batch, config.dim), wide),
            last_k=jnp.zeros((batch, config.num_heads, config.head_dim), dtype),
            last_evidence=jnp.zeros((batch, config.num_heads, 2), wide),
            memory=MemoryState(*slots(near), *slots(config.long_term), distance),
        )

    return State(
        layers=tuple(layer() for _ in range(config.num_layers)),
        document=jnp.full(batch, NO_DOCUMENT, jnp.int32),
        place=jnp.zeros(batch, jnp.int32),
        live=jnp.zeros((batch, near), bool),
    )


def embedding(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Embed:
    """The embedding, which is also the output matrix.

    Logits of unit variance make the first loss just above log V.
    """
    return nnx.Embed(
        config.vocab_size,
        config.dim,
        dtype=jnp.dtype(config.dtype),
        param_dtype=param_dtype(config),
        embedding_init=compiled(nnx.initializers.normal(config.dim**-0.5)),
        rngs=rngs,
    )


class MMRec(nnx.Module):
    """The model, a container of parameters. The state is an argument and a result."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stacked: bool = False):
        """`stacked`: one block stands for all; its parameters get a first axis for the layers."""
        self.config = config
        self.embedding = embedding(config, rngs)
        if stacked:
            self.blocks = Block(config, rngs)
        else:
            self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config)

    def __call__(
        self,
        tokens: Int[Array, "batch T"],
        documents: Int[Array, "batch T"],
        state: State | None = None,
        key: PRNGKeyArray | None = None,
        scored: Bool[Array, "batch T"] | None = None,
        of_gradient: Effort = NO_EFFORT,
    ) -> Output:
        """Reads T more tokens, a multiple of C, from the beginning of a chunk.

        Args:
            tokens: token ids.
            documents: the document id (not negative) of each token. Nothing is read across
                documents.
            state: the state after complete chunks; None: an empty one.
            key: for dropout and the auxiliary losses; None switches both off.
            scored: the tokens whose predictions count in training; None: all.
            of_gradient: its gradient is the effort of the gradients of all recurrences.
        """
        chunk_len = self.config.chunk_len
        state = init_state(self.config, tokens.shape[0]) if state is None else state
        before = jnp.concatenate([state.document[:, None], documents[:, :-1]], axis=1)
        start = documents != before
        segments = Segments(
            start=start,
            tokens=jnp.cumsum(start, axis=1, dtype=jnp.int32),
            short=jnp.where(state.live[:, :-chunk_len], 0, -1),
            scored=scored,
        )
        segments = layout.whole_sequences(segments)
        x, layers, aux = self._read(tokens, segments, state, key, of_gradient)
        near = jnp.concatenate([segments.short, segments.tokens], axis=1)[:, tokens.shape[1] :]
        live = jnp.pad(near == segments.tokens[:, -1:], ((0, 0), (0, chunk_len)))
        return Output(self._logits(x), State(layers, documents[:, -1], state.place, live), aux)

    def split_weights(self) -> list[Weights]:
        """Of each block what `step` needs; a loop over tokens makes them once, before it begins."""
        return [block.split_weights() for block in self.blocks]

    def step(
        self,
        tokens: Int[Array, "batch"],
        documents: Int[Array, "batch"],
        state: State,
        weights: Sequence[Weights] | None = None,
    ) -> Output:
        """Reads one more token, at any position in its chunk."""
        config, start = self.config, documents != state.document
        slot = config.short_term + state.place
        here = jnp.arange(state.live.shape[1]) == slot[:, None]
        live = jnp.where(start[:, None], False, state.live) | here
        full = state.place + 1 == config.chunk_len
        place = Place(start[:, None], slot, live, full)
        x, layers, aux = self._read(tokens[:, None], place, state, None, weights=weights)
        left = jnp.roll(live, -config.chunk_len, axis=1).at[:, config.short_term :].set(False)
        state = State(
            layers=layers,
            document=documents,
            place=jnp.where(full, 0, state.place + 1),
            live=jnp.where(full[:, None], left, live),
        )
        return Output(self._logits(x)[:, 0], state, aux)

    def _read(self, tokens, where, state, key, of_gradient=NO_EFFORT, weights=None):
        """The residual stream after all blocks, with their states and auxiliary losses."""
        count = self.config.num_layers
        keys = None if key is None else jax.random.split(key, count)
        x = layout.by_token(layout.gathered(self.embedding)(tokens))
        # Jitted, so that blocks that are alike are traced once.
        read_block = jax.jit(_recomputing(_read_block, self.config.remat))

        def read(x, layer):
            block, *its_own = layer
            x, layer_state, aux = read_block(block, x, where, of_gradient, *its_own)
            return x, (layer_state, aux)

        if isinstance(self.blocks, Block):
            states = jax.tree.map(lambda *xs: jnp.stack(xs), *state.layers)
            with jax.named_scope("layers"):
                x, (states, aux) = lax.scan(read, x, (self.blocks, states, keys, None))
            layers = tuple(jax.tree.map(operator.itemgetter(i), states) for i in range(count))
            effort = jax.tree.map(jnp.sum, aux.effort)
            return x, layers, Aux(aux.saliency.mean(), aux.uboo.sum(), effort)

        results = []
        for i, block in enumerate(self.blocks):
            own = (None if x is None else x[i] for x in (state.layers, keys, weights))
            x, result = read(x, (block, *own))
            results.append(result)
        layers, aux = zip(*results, strict=True)
        saliency = sum(losses.saliency for losses in aux) / count
        effort = jax.tree.map(lambda *layers: sum(layers), *(losses.effort for losses in aux))
        return x, layers, Aux(saliency, sum(losses.uboo for losses in aux), effort)

    def _logits(self, x):
        return jnp.einsum(
            "btd,vd->btv",
            self.norm(x),
            layout.gathered(self.embedding).embedding[...].astype(x.dtype),
            preferred_element_type=param_dtype(self.config),
        )


def _read_block(block: Block, x, where, of_gradient, state, key, weights):
    """`block(...)`, with the weights gathered and the tokens divided."""
    x, state, aux = layout.gathered(block)(x, where, state, key, of_gradient, weights)
    return layout.by_token(x), layout.by_sequence(state), aux


def _recomputing(function, everything: bool):
    """A function that is computed once more in the backward pass, except for FOUND, or in part.

    At least the weights that it gathers are gathered again, so that those of one block at a time
    are whole.
    """
    if everything:
        policy = jax.checkpoint_policies.save_only_these_names(FOUND)
        return jax.checkpoint(function, policy=policy)
    if layout.is_gathering():
        return jax.checkpoint(function, policy=_is_of_tokens)
    return function


def _is_of_tokens(_, *inputs, **__):
    """Whether an operation reads more than weights, which have at most two axes."""
    return any(x.ndim > 2 for x in inputs)
