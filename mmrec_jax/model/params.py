"""Parameters as nested dicts of arrays: their initialization, and the model around them."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.model.lm import MMRec

Params = Any  # nested dicts of arrays, named after the model's attributes


def model_graph(config: ModelConfig) -> nnx.GraphDef:
    """The structure of the model; `nnx.merge` combines it with parameters into the model."""
    return nnx.split(nnx.eval_shape(lambda: MMRec(config, nnx.Rngs(0))))[0]


def init_params(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Freshly initialized parameters."""

    def init(key):
        _, params = nnx.split(MMRec(config, nnx.Rngs(key)), nnx.Param)
        return nnx.to_pure_dict(params)

    return jax.jit(init)(key)


def param_shapes(config: ModelConfig) -> Params:
    """The parameters by shape and dtype, without their values."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
