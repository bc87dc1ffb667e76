"""How the arrays of a computation lie on a mesh of devices (`jax.set_mesh`).

A mesh has two axes, `data` and `fsdp`. Each device of both has its own sequences of a batch.
Parameters are divided over `fsdp`, and gathered block by block, just before they are used. Without
a mesh, nothing here changes anything.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

DATA, FSDP = "data", "fsdp"
BATCH = PartitionSpec((DATA, FSDP))  # of arrays [batch, ...]
EVERYWHERE = PartitionSpec()


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
    """Parameters that every device has completely; their gradients may be divided again."""
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


# The gradient of a constraint would be the same constraint, and so never divided.
_gather.defvjp(lambda x: (_gather(x), None), lambda _, gradient: (gradient,))
