"""Which device has which part of the training state.

Devices form a mesh of `mesh.data` x `mesh.fsdp` x `mesh.time`. Batches and carried memory are
divided over the first two; parameters and what the optimizer keeps of them over `fsdp` alone. How
`time` divides what is computed from a batch is in model/layout.py. One device is the mesh
1 x 1 x 1.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mmrec_jax.config import Config
from mmrec_jax.data.windows import Batch
from mmrec_jax.errors import UserError
from mmrec_jax.model.layout import AXES, BATCH, FSDP, TIME, of_parameter


def make_mesh(config: Config, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of a run on some of these devices.

    Raises:
        UserError: there are too few devices, or they cannot divide a micro-batch evenly; or devices
            of several processes are left over.
    """
    shape = mesh_shape(config, len(devices))
    if jax.process_count() > 1 and math.prod(shape) < len(devices):
        raise UserError(
            f"{_in_words(shape, 'mesh.')} uses {math.prod(shape)} of "
            f"{len(devices)} devices; several processes have to use all of them. Make "
            "train.batch_size a multiple of their number, or start fewer"
        )
    return _mesh(shape, devices)


def evaluation_mesh(config: Config, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh on which a run is evaluated: the nearest to its own that these devices allow."""
    shape = _nearest(config, config.train.eval_batch_size, len(devices))[0]
    return _mesh((*shape, 1), devices)


def mesh_shape(config: Config, num_devices: int) -> tuple[int, int, int]:
    """The sizes of `data`, `fsdp` and `time`.

    A size of -1 stands for the largest with which the devices divide a micro-batch evenly.

    Raises:
        UserError: there are too few devices, or they cannot divide a micro-batch or its sequences
            evenly.
    """
    train, time = config.train, config.mesh.time
    _check_time(config, num_devices)
    rows = train.batch_size // train.accumulate_steps
    nearest, distance = _nearest(config, rows, num_devices // time)
    if distance == 0:
        return *nearest, time
    wanted = config.mesh.data, config.mesh.fsdp, time
    of = f"train.batch_size {train.batch_size}"
    if train.accumulate_steps > 1:
        of += f" / train.accumulate_steps {train.accumulate_steps}"
    raise UserError(
        f"{_in_words(wanted, 'mesh.')} does not fit: there are {num_devices} devices, and they "
        f"have to divide the {rows} sequences of {of}; the nearest that fits is "
        f"--config.mesh.data={nearest[0]} --config.mesh.fsdp={nearest[1]}"
    )


def _check_time(config: Config, num_devices: int) -> None:
    model, time = config.model, config.mesh.time
    if time > num_devices:
        raise UserError(f"mesh.time is {time}, but there are only {num_devices} devices")
    parts = {"model.chunk_len": model.chunk_len}
    if model.recurrence not in ("scan", "fused"):
        parts["model.recurrence_interval"] = model.recurrence_interval
    for name, part in parts.items():
        if config.train.seq_len % (time * part) and time > 1:
            raise UserError(
                f"the {time} devices of mesh.time cannot divide a sequence evenly: train.seq_len "
                f"{config.train.seq_len} is not a multiple of {time} x {part} ({name})"
            )


def in_words(mesh: Mesh | AbstractMesh) -> str:
    """The sizes of a mesh, such as "data 2 x fsdp 4"."""
    return _in_words(tuple(mesh.shape.values()))


def _in_words(shape: Sequence[int], prefix: str = "") -> str:
    sizes = zip(AXES, shape, strict=True)
    return " x ".join(f"{prefix}{axis} {n}" for axis, n in sizes if n > 1 or axis != TIME)


def _nearest(config: Config, rows: int, num_devices: int) -> tuple[tuple[int, int], int]:
    """The nearest mesh to that of a config whose devices divide rows evenly, and its distance.

    Of several, it is the one with the most devices.
    """
    sizes = [size for size in range(1, min(rows, num_devices) + 1) if rows % size == 0]
    possible = [
        (data, fsdp)
        for data, fsdp in itertools.product(sizes, sizes)
        if data * fsdp <= num_devices and rows % (data * fsdp) == 0
    ]
    wanted = config.mesh.data, config.mesh.fsdp

    def distance(shape):
        return sum(abs(x - want) for x, want in zip(shape, wanted, strict=True) if want != -1)

    nearest = min(possible, key=lambda shape: (distance(shape), -math.prod(shape)))
    return nearest, distance(nearest)


def _mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> Mesh:
    return jax.make_mesh(
        shape,
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[: math.prod(shape)],
    )


def partition(
    path: Sequence[Any], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """How an array of the training state is divided.

    Args:
        path: its place in `TrainState`.
        shape, mesh: of the array and of the devices.

    Returns:
        Carried memory, [groups, batch, ...], is divided by sequence. Of everything else, the
        largest axis that `fsdp` divides evenly; small arrays are not divided.
    """
    if jax.tree_util.keystr(path[:1], simple=True) == "memory":
        return PartitionSpec(None, *BATCH)
    return of_parameter(shape, mesh.shape[FSDP])


def placed(abstract: Any, mesh: Mesh) -> Any:
    """The shapes and dtypes of a training state, or of parameters, with their shardings."""

    def place(path, x):
        sharding = NamedSharding(mesh, partition(path, x.shape, mesh))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, abstract)


def shardings(abstract: Any) -> Any:
    """The shardings of arrays, abstract or not."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How arrays [batch, ...] are divided."""
    return NamedSharding(mesh, BATCH)


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that the devices of this process read, in order."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in slices for row in range(batch_size)[part]})


def place_batch(batch: Batch, mesh: Mesh, batch_size: int) -> Batch:
    """A batch on the devices of all processes, each of which gives its own rows (`local_rows`)."""
    sharding, rows = batch_sharding(mesh), local_rows(mesh, batch_size)

    def place(x):
        def part(index):
            wanted = range(batch_size)[index[0]]
            return x[rows.index(wanted[0]) :][: len(wanted)]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)


@functools.cache
def place_signal(number: int, mesh: Mesh) -> jax.Array:
    """The number of a signal that this process has received, or 0, for each of its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    own = np.full(1, number, np.int32)
    return jax.make_array_from_callback((mesh.size,), sharding, lambda _: own)
