"""The mesh of a run, and which device has which part of its state."""

import dataclasses
import itertools
import re

import jax
import pytest
from jax.sharding import PartitionSpec as P
from jax.tree_util import GetAttrKey

from mmrec_jax.errors import UserError
from mmrec_jax.learning.sharding import mesh_shape, partition
from mmrec_jax.model.layout import AXES
from small_runs import config

PARAMS, MEMORY = (GetAttrKey("params"),), (GetAttrKey("memory"),)


def with_mesh(data, fsdp, time=1, **changes):
    cfg = config(**changes)
    mesh = dataclasses.replace(cfg.mesh, data=data, fsdp=fsdp, time=time)
    return dataclasses.replace(cfg, mesh=mesh)


@pytest.mark.parametrize(
    ("shape", "fsdp", "expected"),
    [
        ((128, 768), 4, P(None, "fsdp")),
        ((512, 128), 4, P("fsdp", None)),
        ((128, 128), 4, P("fsdp", None)),  # the first of equals
        ((5001, 128), 4, P(None, "fsdp")),  # the longest axis is odd
        ((5001, 127), 4, P()),
        ((128, 64), 4, P()),  # small
        ((128, 768), 1, P()),
        ((2**14,), 8, P("fsdp")),
    ],
)
def test_the_longest_axis_of_a_large_array_is_divided(shape, fsdp, expected):
    mesh = jax.sharding.AbstractMesh((2, fsdp, 1), AXES)
    assert partition(PARAMS, shape, mesh) == expected


def test_carried_memory_is_divided_by_sequence_however_small():
    mesh = jax.sharding.AbstractMesh((2, 4, 1), AXES)
    assert partition(MEMORY, (3, 8, 2), mesh) == P(None, ("data", "fsdp"))


@pytest.mark.parametrize(
    ("wanted", "batch_size", "devices", "expected"),
    [
        ((-1, 1), 8, 1, (1, 1)),
        ((-1, 1), 8, 4, (4, 1)),
        ((-1, 2), 8, 8, (4, 2)),
        ((2, -1), 8, 8, (2, 4)),
        ((-1, 1), 2, 8, (2, 1)),  # the batch has no more sequences
        ((-1, 1), 6, 4, (3, 1)),
        ((2, 2), 8, 8, (2, 2)),  # the other four devices are not used
    ],
)
def test_a_free_axis_takes_what_can_divide_the_batch(wanted, batch_size, devices, expected):
    cfg = with_mesh(*wanted, train__batch_size=batch_size)
    assert mesh_shape(cfg, devices) == (*expected, 1)


def test_micro_batches_are_divided_too():
    cfg = with_mesh(-1, 1, train__batch_size=8, train__accumulate_steps=4)
    assert mesh_shape(cfg, 8) == (2, 1, 1)


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (1, 3), (16, 1), (4, 4), (-1, 5), (7, -1)])
def test_a_mesh_that_does_not_fit_is_refused_with_one_that_does(data, fsdp):
    with pytest.raises(UserError) as error:
        mesh_shape(with_mesh(data, fsdp, train__batch_size=8), 8)
    line = str(error.value)
    assert "\n" not in line
    assert f"mesh.data {data} x mesh.fsdp {fsdp}" in line
    shape = tuple(int(x) for x in re.findall(r"=(\d+)", line))
    fixed = with_mesh(*shape, train__batch_size=8)
    assert mesh_shape(fixed, 8) == (*shape, 1)
    closer = [  # no mesh that fits is nearer
        other
        for other in itertools.product((1, 2, 4, 8), repeat=2)
        if other[0] * other[1] <= 8 and far(other, (data, fsdp)) < far(shape, (data, fsdp))
    ]
    assert closer == []


def test_time_is_divided_after_the_sequences():
    cfg = with_mesh(-1, 1, time=4, train__batch_size=8, train__seq_len=256)
    assert mesh_shape(cfg, 8) == (2, 1, 4)


@pytest.mark.parametrize(
    ("time", "changes", "line"),
    [
        (16, {}, "mesh.time is 16, but there are only 8 devices"),
        (3, {}, "train.seq_len 32 is not a multiple of 3 x 8 (model.chunk_len)"),
        (
            4,
            {"model__recurrence_interval": 5},
            "multiple of 4 x 5 (model.recurrence_interval)",
        ),
    ],
)
def test_a_mesh_that_cannot_divide_the_time_is_refused(time, changes, line):
    with pytest.raises(UserError) as error:
        mesh_shape(with_mesh(1, 1, time=time, **changes), 8)
    assert line in str(error.value)


def far(shape, wanted):
    return sum(abs(x - want) for x, want in zip(shape, wanted, strict=True) if want != -1)


def test_both_axes_cannot_be_free():
    with pytest.raises(UserError, match=r"mesh.data and mesh.fsdp are both -1"):
        with_mesh(-1, -1)
