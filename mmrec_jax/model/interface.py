"""What training and evaluation need of a language model: three pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.lm import Output, init_state
from mmrec_jax.model.params import Params, has_stacked_layers, init_params, model_graph


class ModelFunctions(NamedTuple):
    """A language model as pure functions; `mmrec` gives those of MM-Rec.

    A state is a tree of arrays [batch, ...]. Parameters are nested dicts of arrays.
    """

    init_params: Callable[[PRNGKeyArray], Params]
    init_state: Callable[[int], Any]  # the empty state of this many sequences
    # (params, tokens [batch, T], documents [batch, T], state, key, scored [batch, T]): reads T
    # tokens as `MMRec` does. Without a state it begins with an empty one; without a key there is no
    # dropout; without `scored`, all predictions count.
    apply: Callable[..., Output]
    # Whether training keeps the layers of the parameters stacked (`params.stack_layers`).
    stacks_layers: bool = False
    # Whether `apply` takes `of_gradient`, and reports what parallel recurrences took.
    counts_effort: bool = False


@functools.cache  # so that what is compiled for a model is found again
def mmrec(config: ModelConfig) -> ModelFunctions:
    """MM-Rec of this shape."""

    def apply(params, *args, **kwargs):
        graph = model_graph(config, has_stacked_layers(params))
        return nnx.merge(graph, params)(*args, **kwargs)

    return ModelFunctions(
        init_params=lambda key: init_params(config, key),
        init_state=lambda batch: init_state(config, batch),
        apply=apply,
        stacks_layers=config.is_scanned,
        counts_effort=config.recurrence == "parallel",
    )
