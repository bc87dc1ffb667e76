"""How the arrays of a computation lie on a mesh of devices (`jax.set_mesh`).

A mesh has two axes, `data` and `fsdp`. Each device of both has its own sequences of a batch.
Parameters are divided over `fsdp`, and gathered block by block, just before they are used. Without
a mesh, nothing here changes anything.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

DATA, FSDP = "data", "fsdp"
BATCH = PartitionSpec((DATA, FSDP))  # of arrays [batch, ...]
EVERYWHERE = PartitionSpec()
SMALL = 2**14  # parameters with fewer elements are on every device: to gather them costs more


def of_parameter(shape: Sequence[int], fsdp: int) -> PartitionSpec:
    """How a parameter is divided: if it is large, by its longest axis that `fsdp` divides."""
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < SMALL or not divisible:
        return EVERYWHERE
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == longest else None for axis in range(len(shape))))


def by_sequence(tree: Any) -> Any:
    """Arrays [batch, ...], of which each device has its own sequences.

    If the devices cannot divide the batch evenly, each has all of it.
    """
    return jax.tree.map(lambda x: _constrain(x, BATCH) if _is_divided(x) else x, tree)


def everywhere(tree: Any) -> Any:
    """Arrays that every device has completely."""
    return jax.tree.map(lambda x: _constrain(x, EVERYWHERE), tree)


def by_layer(x: jax.Array) -> jax.Array:
    """Stacked layers, and zeros, so that each device of `fsdp` has as many."""
    missing = -len(x) % jax.sharding.get_abstract_mesh().shape[FSDP]
    return _constrain(jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), PartitionSpec(FSDP))


def from_layers(x: jax.Array, num_layers: int, layout: PartitionSpec) -> jax.Array:
    """What `by_layer` was given, in its layout."""
    return _constrain(_constrain(x, PartitionSpec(FSDP)), layout)[:num_layers]


def gathered(params: Any) -> Any:
    """Parameters that every device has completely; their gradients are divided."""
    return jax.tree.map(_gather, params) if is_gathering() else params


def is_gathering() -> bool:
    """Whether parameters are divided."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape[FSDP] > 1


def on_own_sequences(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of an array [batch, ...] that each device applies to its own sequences.

    It is for operations that XLA does not divide, and would gather their operands for.
    """

    def apply(x):
        if not _is_divided(x):
            return function(x)
        return jax.shard_map(function, in_specs=BATCH, out_specs=BATCH)(x)

    return apply


def _is_divided(x: jax.Array) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and len(x) % mesh.size == 0


def _constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


@jax.custom_vjp
def _gather(x):
    return _constrain(x, EVERYWHERE)


def _scatter(_, gradient):
    # The gradient of a constraint would be the same constraint, and so never divided.
    fsdp = jax.sharding.get_abstract_mesh().shape[FSDP]
    return (_constrain(gradient, of_parameter(gradient.shape, fsdp)),)


_gather.defvjp(lambda x: (_gather(x), None), _scatter)
