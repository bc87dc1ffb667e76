"""Parameters as nested dicts of arrays: their initialization, and the model around them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.lm import MMRec

Params = Any  # nested dicts of arrays, named after the model's attributes


@functools.cache  # takes long
def _abstract(config: ModelConfig, stacked: bool):
    return nnx.split(nnx.eval_shape(lambda: MMRec(config, nnx.Rngs(0), stacked)))


def model_graph(config: ModelConfig, stacked: bool = False) -> nnx.GraphDef:
    """The structure of the model; `nnx.merge` combines it with parameters into the model.

    `stacked`: whether the layers of the parameters are stacked (`stack_layers`).
    """
    return _abstract(config, stacked)[0]


def init_params(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Freshly initialized parameters."""
    _, params = nnx.split(MMRec(config, nnx.Rngs(key)), nnx.Param)
    return nnx.to_pure_dict(params)


def param_shapes(config: ModelConfig) -> Params:
    """The parameters by shape and dtype, without their values."""
    shapes = nnx.to_pure_dict(_abstract(config, False)[1])
    # Without the mesh, if any, under which the model was first traced.
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)


def stack_layers(tree: Any) -> Any:
    """A tree in which parameters have one block, whose arrays have a first axis for the layers.

    It may hold several trees of parameters, such as those of an optimizer's moments.
    """

    def stack(part):
        if not _has_layers(part):
            return part
        layers = [part["blocks"][i] for i in range(len(part["blocks"]))]
        return {**part, "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *layers)}

    return jax.tree.map(stack, tree, is_leaf=_has_layers)


def unstack_layers(tree: Any, num_layers: int) -> Any:
    """The inverse of `stack_layers`."""

    def unstack(part):
        if not has_stacked_layers(part):
            return part
        return {**part, "blocks": {i: _layer(part["blocks"], i) for i in range(num_layers)}}

    return jax.tree.map(unstack, tree, is_leaf=has_stacked_layers)


def _layer(stacked: Any, index: int) -> Any:
    index = jnp.int32(index)  # an argument, so that one compiled program serves all layers
    return jax.tree.map(lambda x: x[index], stacked)


def has_stacked_layers(tree: Any) -> bool:
    """Whether a tree is one of parameters whose layers are stacked."""
    return isinstance(tree, dict) and "blocks" in tree and not _has_layers(tree)


def _has_layers(tree: Any) -> bool:
    return isinstance(tree, dict) and 0 in tree.get("blocks", ())
