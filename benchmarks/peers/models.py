"""The models to compare: MM-Rec in three forms, and its peers with as many parameters."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from benchmarks.peers import deltanet, griffin, lstm, stack, transformer
from mmrec_jax.config import Config
from mmrec_jax.errors import UserError
from mmrec_jax.model.interface import ModelFunctions, mmrec
from mmrec_jax.model.lm import Output
from mmrec_jax.model.params import model_graph

TOLERANCE = 0.05  # of the number of parameters, relative to that of MM-Rec


class Model(NamedTuple):
    """A row of the comparison."""

    name: str
    config: Config  # with the model's own width, and for MM-Rec its memories
    functions: ModelFunctions
    sizes: str  # what was chosen, in words
    step: Callable[..., Output]  # (params, tokens [B], documents [B], state): reads one token
    start: Callable[[int], Any]  # the empty state of one text of so many tokens

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        shapes = jax.eval_shape(self.functions.init_params, jax.random.key(0))
        return sum(x.size for x in jax.tree.leaves(shapes))


class Peer(NamedTuple):
    """How a peer is built: make(config, hidden, rngs, and window=W if it has one)."""

    make: Callable[..., stack.Stack]
    default_hidden: Callable[[int], int] | None = None  # width of the MLP; None: there is no MLP
    has_window: bool = False


PEERS = {
    "transformer": Peer(transformer.make, transformer.default_hidden),
    "sliding": Peer(transformer.make, transformer.default_hidden, has_window=True),
    "lstm": Peer(lstm.make),
    "griffin": Peer(griffin.make, griffin.default_hidden, has_window=True),
    "deltanet": Peer(deltanet.make, deltanet.default_hidden),
}
OURS = ("mmrec", "mmrec_no_bank", "mmrec_wide")
NAMES = (*OURS, *PEERS)


def build(names: Sequence[str], config: Config, window: int) -> list[Model]:
    """The named models, as large as MM-Rec of this config; peers see `window` tokens where local.

    Raises:
        UserError: a model cannot be made as large within 5%.
    """
    target = our_model("mmrec", config).parameters
    models = [
        our_model(name, config) if name in OURS else peer(name, config, window, target)
        for name in names
    ]
    for model in models:
        if abs(model.parameters / target - 1) > TOLERANCE:
            raise UserError(
                f"{model.name} has {model.parameters:,} parameters with {model.sizes}, which is "
                f"not within {TOLERANCE:.0%} of MM-Rec's {target:,}; use a wider model"
            )
    return models


def our_model(name: str, config: Config) -> Model:
    """MM-Rec; without the bank; or without it, but with as many more short-term tokens."""
    shape = config.model
    if name != "mmrec":
        more = -(-shape.long_term // shape.chunk_len) * shape.chunk_len
        more = shape.short_term + (more if name == "mmrec_wide" else 0)
        shape = dataclasses.replace(shape, long_term=0, short_term=more)
    graph = model_graph(shape)
    functions = mmrec(shape)

    def step(params, tokens, documents, state):
        return nnx.merge(graph, params).step(tokens, documents, state)

    return Model(
        name=name,
        config=dataclasses.replace(config, name=name, model=shape),
        functions=functions,
        sizes=f"D {shape.dim}, S {shape.short_term}, C {shape.chunk_len}, M {shape.long_term}",
        step=step,
        start=lambda tokens: functions.init_state(1),
    )


def peer(name: str, config: Config, window: int, target: int) -> Model:
    """A peer with about `target` parameters: first the width is chosen, then that of its MLPs."""
    how = PEERS[name]
    local = {"window": window} if how.has_window else {}
    heads = config.model.num_heads if how.default_hidden else 1  # the LSTM has none

    def maker(width: int, hidden: int = 0, **more) -> Callable[[nnx.Rngs], stack.Stack]:
        shape = dataclasses.replace(config.model, dim=width, num_heads=heads)
        hidden = hidden or (how.default_hidden or int)(width)
        return lambda rngs: how.make(shape, hidden, rngs, **local, **more)

    def count(*sizes: int) -> int:
        abstract = nnx.eval_shape(lambda: maker(*sizes)(nnx.Rngs(0)))
        return sum(x.size for x in jax.tree.leaves(nnx.state(abstract, nnx.Param)))

    # An even number of channels per head, and a multiple of 4 as ModelConfig asks.
    unit = math.lcm(4, 2 * heads)
    sizes = (_nearest(range(unit, 8 * config.model.dim, unit), count, target),)
    if how.default_hidden:  # the count grows evenly with the width of the MLPs
        few, more = count(*sizes, 4), count(*sizes, 8)
        sizes = *sizes, 4 * max(1, round(1 + (target - few) / (more - few)))
    chosen = stack.functions(maker(*sizes))

    def step(params, tokens, documents, state):
        output = chosen.apply(params, tokens[:, None], documents[:, None], state)
        return output._replace(logits=output.logits[:, 0])

    def start(tokens: int):
        slots = {"slots": tokens} if name == "transformer" else {}
        return stack.functions(maker(*sizes, **slots)).init_state(1)

    words = "".join((f"D {sizes[0]}", *(f", MLP {hidden}" for hidden in sizes[1:])))
    return Model(
        name=name,
        config=dataclasses.replace(
            config,
            name=name,
            model=dataclasses.replace(config.model, dim=sizes[0], num_heads=heads),
        ),
        functions=chosen,
        sizes=words + (f", W {window}" if how.has_window else ""),
        step=step,
        start=start,
    )


def _nearest(options: range, count: Callable[[int], int], target: int) -> int:
    """The option whose count, which grows with it, is nearest to the target."""
    above = bisect.bisect_left(options, target, key=count)
    near = options[max(above - 1, 0) : above + 1]
    return min(near, key=lambda option: abs(count(option) - target))
