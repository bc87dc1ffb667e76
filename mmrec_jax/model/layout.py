"""How the arrays of a computation lie on a mesh of devices (`jax.set_mesh`).

A mesh has three axes. Sequences of a batch are divided over `data` and `fsdp`, and the tokens of a
sequence over `time`. Parameters are divided over `fsdp`, and gathered block by block, just before
they are used. Without a mesh, nothing here changes anything.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Int

AXES = DATA, FSDP, TIME = "data", "fsdp", "time"
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


def by_token(x: jax.Array, axis: int = 1) -> jax.Array:
    """An array [batch, ...], of which each device has its own tokens.

    `axis` is that of tokens, or of chunks. If the devices cannot divide it, each has all of it.
    """
    if x.shape[axis] % _size(TIME) or not _is_divided(x):
        return by_sequence(x)
    return _constrain(x, PartitionSpec(*BATCH, *[None] * (axis - 1), TIME))


def whole_sequences(tree: Any) -> Any:
    """Arrays [batch, ...] that devices may have by token, with all tokens of their sequences."""
    return by_sequence(tree) if _is_time_divided() else tree


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
    return _size(FSDP) > 1


def num_parts(mesh: Mesh | AbstractMesh) -> int:
    """Among how many devices, or groups of them, the sequences of a batch are divided."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def on_own_sequences(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of trees of arrays [batch, ...] that each device applies to its own sequences.

    It is for what XLA would not divide, and for loops over time, in which it must not. If the
    devices cannot divide the batch evenly, each applies it to all of it.
    """

    def apply(*args):
        if jax.sharding.get_abstract_mesh().empty:
            return function(*args)
        spec = BATCH if _is_divided(jax.tree.leaves(args)[0]) else EVERYWHERE
        return _map(function, in_specs=spec, out_specs=spec)(*args)

    return apply


def on_own_tokens(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that each device of `time` applies to its own tokens.

    Its arguments are a tree of arrays [batch, ...] and one of arrays [batch, T, ...], its results
    an array [batch, T, ...], an array [batch, ...] and numbers. It calls `all_parts` for what it
    needs of others.
    """
    if not _is_time_divided():
        return function
    by_tokens = PartitionSpec(*BATCH, TIME)
    return _map(function, in_specs=(BATCH, by_tokens), out_specs=(by_tokens, BATCH, EVERYWHERE))


# For functions of `on_own_tokens`. They change nothing where one device has all tokens.


def all_parts(tree: Any, reverse: bool = False) -> Any:
    """The arrays of all devices of `time` on a new first axis; the last first if `reverse`."""
    if not _is_time_divided():
        return jax.tree.map(lambda x: x[None], tree)
    parts = jax.lax.all_gather(tree, TIME)
    return jax.tree.map(lambda x: jnp.flip(x, axis=0), parts) if reverse else parts


def own_part(reverse: bool = False) -> Int[Array, ""]:
    """Which of all parts is that of this device."""
    if not _is_time_divided():
        return jnp.zeros((), jnp.int32)
    index = jax.lax.axis_index(TIME)
    return _size(TIME) - 1 - index if reverse else index


def all_tokens(tree: Any) -> Any:
    """Arrays [batch, T, ...] with the tokens of all devices."""
    return jax.lax.all_gather(tree, TIME, axis=1, tiled=True) if _is_time_divided() else tree


def own_tokens(x: jax.Array) -> jax.Array:
    """What `all_tokens` was given."""
    if not _is_time_divided():
        return x
    length = x.shape[1] // _size(TIME)
    return jax.lax.dynamic_slice_in_dim(x, own_part() * length, length, axis=1)


def largest_in_time(x: jax.Array) -> jax.Array:
    """The largest of the elements that all devices of `time` have."""
    return jax.lax.pmax(x, TIME) if _is_time_divided() else x


def largest(x: jax.Array) -> jax.Array:
    """The largest of the elements that all devices have."""
    return jax.lax.pmax(x, AXES) if _is_time_divided() else x


# Loops begin with constants, which are the same everywhere, and go on with what is not.
_map = functools.partial(jax.shard_map, check_vma=False)


def _size(axis: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def _is_time_divided() -> bool:
    """Whether several devices divide the tokens of a sequence."""
    return _size(TIME) > 1


def _is_divided(x: jax.Array) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and len(x) % num_parts(mesh) == 0


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
