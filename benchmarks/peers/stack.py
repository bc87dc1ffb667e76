"""What the peers have in common: a residual stack around mixers of tokens, and its state.

    x = embedding[tokens]
    x = x + dropout(mixer(RMSNorm(x)));   x = x + dropout(mlp(RMSNorm(x)))     for each layer
    logits = RMSNorm(x) embedding^T

The embedding, the norms, the linear maps with their CPU forms, and dropout are those of MM-Rec. A
peer supplies its mixers (and MLPs), which read any number of tokens, one at a time in generation.
What ends a residual branch is initialized 1 / sqrt(2 L) times as large as other matrices, so that
the sum of all branches does not grow with the number of layers (Radford et al., 2019).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.block import Aux, RMSNorm, param_dtype
from mmrec_jax.model.interface import ModelFunctions
from mmrec_jax.model.lm import NO_DOCUMENT, Output, embedding
from mmrec_jax.model.ops import Linear, affine, dropout


class Place(NamedTuple):
    """Which of the tokens to read belong to one document."""

    start: Array  # [B, T], true where a document starts
    segment: Array  # [B, T], the number of its document; 0: the one in which the state ended


class State(NamedTuple):
    """What a peer remembers of a text."""

    layers: tuple  # the state of each mixer
    document: Array  # [B], id of the last token's document


class Residual(nnx.Module):
    """dropout(inner(RMSNorm(x))), one branch of the stack."""

    def __init__(self, config: ModelConfig, inner: nnx.Module):
        self.norm, self.inner, self.rate = RMSNorm(config), inner, config.dropout

    def __call__(self, x, key, *where):
        y = self.inner(self.norm(x), *where)
        y, *state = y if where else (y,)
        return x + dropout(y, self.rate, key), *state


class Stack(nnx.Module):
    """The model, a container of parameters. Its state is an argument and a result."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, mixers, mlps=()):
        """`mixers`: one per layer; `mlps`: as many, or none."""
        self.config = config
        self.embedding = embedding(config, rngs)
        self.mixers = nnx.List([Residual(config, mixer) for mixer in mixers])
        self.mlps = nnx.List([Residual(config, mlp) for mlp in mlps])
        self.norm = RMSNorm(config)

    def init_state(self, batch: int) -> State:
        """The empty state of `batch` sequences."""
        layers = tuple(mixer.inner.init_state(batch) for mixer in self.mixers)
        return State(layers, jnp.full(batch, NO_DOCUMENT, jnp.int32))

    def __call__(self, tokens, documents, state: State | None = None, key=None) -> Output:
        """Reads tokens [B, T] with the document id of each, as `MMRec` does."""
        state = self.init_state(len(tokens)) if state is None else state
        before = jnp.concatenate([state.document[:, None], documents[:, :-1]], axis=1)
        start = documents != before
        place = Place(start, jnp.cumsum(start, axis=1, dtype=jnp.int32))
        count = len(self.mixers)
        keys = [None] * 2 * count if key is None else list(jax.random.split(key, 2 * count))
        x, layers = self.embedding(tokens), []
        for index, (mixer, memory) in enumerate(zip(self.mixers, state.layers, strict=True)):
            x, after = mixer(x, keys[2 * index], place, memory)
            layers.append(after)
            if self.mlps:
                (x,) = self.mlps[index](x, keys[2 * index + 1])
        weights = self.embedding.embedding[...].astype(x.dtype)
        wide = param_dtype(self.config)
        logits = jnp.einsum("btd,vd->btv", self.norm(x), weights, preferred_element_type=wide)
        zero = jnp.zeros((), wide)
        return Output(logits, State(tuple(layers), documents[:, -1]), Aux(zero, zero))


def functions(make: Callable[[nnx.Rngs], Stack]) -> ModelFunctions:
    """The pure functions of a model that `make` builds with random numbers."""
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph = nnx.split(abstract)[0]

    def init(key):
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)), nnx.Param)[1])

    def apply(params: Any, tokens, documents, state=None, key=None, scored=None):
        del scored
        return nnx.merge(graph, params)(tokens, documents, state, key)

    return ModelFunctions(jax.jit(init), abstract.init_state, apply)


def linear(config: ModelConfig, rngs: nnx.Rngs, ends_branch: bool = False) -> Callable[..., Linear]:
    """Makes linear maps without bias: `linear(config, rngs)(inputs, outputs)`."""
    scale = 1 / (2 * config.num_layers) if ends_branch else 1.0
    return functools.partial(
        Linear,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(scale, "fan_in", "normal"),
        dtype=jnp.dtype(config.dtype),
        param_dtype=param_dtype(config),
        rngs=rngs,
    )


class Maps(nnx.Module):
    """Several linear maps of one input, computed as one.

    Each is a parameter, so that Muon makes the update of each orthogonal.
    """

    def __init__(
        self, config: ModelConfig, inputs: int, outputs: Sequence[int], rngs: nnx.Rngs, **options
    ):
        make = functools.partial(linear(config, rngs), **options)
        self.maps = nnx.List([make(inputs, size) for size in outputs])
        self.ends = tuple(itertools.accumulate(outputs))

    @property
    def kernel(self) -> Array:
        """The maps side by side, [inputs, sum of outputs]."""
        return jnp.concatenate([one.kernel[...] for one in self.maps], axis=1)

    def __call__(self, x) -> list[Array]:
        return jnp.split(affine(x, self.kernel.astype(x.dtype), None), self.ends[:-1], axis=-1)


class GatedMLP(nnx.Module):
    """W_out (act(W_gate x) * W_up x) (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig, hidden: int, activation, rngs: nnx.Rngs):
        self.into = Maps(config, config.dim, [hidden, hidden], rngs)
        self.out = linear(config, rngs, ends_branch=True)(hidden, config.dim)
        self.activation = activation

    def __call__(self, x):
        gate, up = self.into(x)
        return self.out(self.activation(gate) * up)


class Convolution(nnx.Module):
    """A causal convolution over a few tokens, each channel for itself.

    Its state is the last inputs, zero where they belong to an earlier document.
    """

    def __init__(self, config: ModelConfig, channels: int, rngs: nnx.Rngs, width=4, scale=1.0):
        init = nnx.initializers.variance_scaling(scale, "fan_in", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (width, channels), param_dtype(config)))
        self.dtype = jnp.dtype(config.dtype)

    def init_state(self, batch: int) -> Array:
        width, channels = self.kernel.shape
        return jnp.zeros((batch, width - 1, channels), self.dtype)

    def __call__(self, x, place: Place, state):
        """y_t = sum_j kernel_j x_{t - j}, over tokens of one document; and the new state."""
        time, earlier = x.shape[1], state.shape[1]
        x = jnp.concatenate([state, x], axis=1)
        segment = jnp.pad(place.segment, ((0, 0), (earlier, 0)))

        def lagged(lag):
            here = slice(earlier - lag, earlier - lag + time)
            same = segment[:, here] == place.segment
            return jnp.where(same[..., None], x[:, here], 0) * self.kernel[lag].astype(x.dtype)

        y = sum(lagged(lag) for lag in range(earlier + 1))
        current = segment[:, -earlier:] == segment[:, -1:]
        return y, jnp.where(current[..., None], x[:, -earlier:], 0)
