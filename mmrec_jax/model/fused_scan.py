"""A scan over time as a single kernel for TPUs.

XLA runs each step of a scan as a few small operations, which wait for each other longer than they
compute, and reads the weights again for each step if they are large. Here they are read once: they
stay in the memory of the chip (VMEM), as does the state. Inputs and outputs come and go in blocks
of steps meanwhile.
"""

import math
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from mmrec_jax.model import layout
from mmrec_jax.model.over_time import NO_EFFORT, Solution, Step, serial, time_major

# Bytes of the blocks of steps, each of which is there twice: others are copied meanwhile.
BLOCKS = 2**24
OTHER = 2**23  # bytes that are left to the compiler


def fused_scan(step: Step, weights: Any, first: Array, xs: Any, reverse: bool = False) -> Solution:
    """One step after the other (a `Solver`): in the kernel on TPUs, by XLA's scan elsewhere."""

    def by(solve):
        return lambda weights, first, xs: solve(step, weights, first, xs, reverse)[:2]

    on_each = {"tpu": by(kernel_scan), "default": by(serial)}
    return Solution(*lax.platform_dependent(weights, first, xs, **on_each), NO_EFFORT)


def kernel_scan(step: Step, weights: Any, first: Array, xs: Any, reverse: bool = False) -> Solution:
    """`fused_scan` on TPUs; inputs are [batch, T, n]."""

    def of_own_sequences(first, xs):
        in_time = jax.tree.map(time_major, xs)
        outputs, last = _in_kernel(step, weights, first, in_time, reverse)
        return time_major(outputs), last

    return Solution(*layout.on_own_sequences(of_own_sequences)(first, xs), NO_EFFORT)


def bytes_on_chip(weights: int, state: int, of_step: int) -> int:
    """What the kernel needs of a chip's memory, given the bytes of what it reads and writes.

    The state is there three times (the first, and the last with its copy), and what a step computes
    takes up to eight times as much: the TPU compiler accepts this for 8,192 rows of D 128, and for
    2,048 of D 512.
    """
    return weights + (3 + 8) * state + max(BLOCKS, 2 * of_step) + OTHER


def _in_kernel(step: Step, weights: Any, first: Array, xs: Any, reverse: bool):
    from jax.experimental import pallas as pl  # not needed by commands that only have CPUs
    from jax.experimental.pallas import tpu as pltpu

    leaves, structure = jax.tree.flatten((weights, first, xs))
    length = len(leaves[-1])
    outputs = jax.ShapeDtypeStruct((length, *first.shape), first.dtype)
    of_step = sum(_bytes(x.shape[1:], x.dtype) for x in (*jax.tree.leaves(xs), outputs))
    size = _largest_divisor(length, BLOCKS // (2 * of_step))
    count = length // size

    def kernel(*refs):
        weights, first, xs = structure.unflatten(refs[:-2])
        outputs, last = refs[-2:]

        @pl.when(pl.program_id(0) == 0)
        def _():
            last[...] = first[...]

        def advance(i, x):
            t = size - 1 - i if reverse else i
            of_all = jax.tree.map(lambda ref: ref[...], weights)
            x, outputs[t], _ = step(of_all, x, jax.tree.map(lambda ref: ref[t], xs))
            return x

        last[...] = lax.fori_loop(0, size, advance, last[...])

    def whole(x):
        return pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim, pipeline_mode=pl.Buffered(1))

    def block(x):
        def index(i):
            return (count - 1 - i if reverse else i, 0, 0)

        return pl.BlockSpec((size, *x.shape[1:]), index)

    specs = jax.tree.map(whole, weights), whole(first), jax.tree.map(block, xs)
    of_weights = sum(_bytes(x.shape, x.dtype) for x in jax.tree.leaves(weights))
    needed = bytes_on_chip(of_weights, _bytes(first.shape, first.dtype), of_step)
    return pl.pallas_call(
        kernel,
        grid=(count,),
        in_specs=jax.tree.leaves(specs),
        out_specs=(block(outputs), pl.BlockSpec(first.shape, lambda i: (0, 0))),
        out_shape=(outputs, jax.ShapeDtypeStruct(first.shape, first.dtype)),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=needed),
        name="recurrence",
    )(*leaves)


def _bytes(shape, dtype) -> int:
    """Of an array in the memory of a chip: its last two axes in tiles of 8 x 128."""
    *more, rows, columns = (1, *shape) if len(shape) == 1 else shape
    return math.prod(more) * (-(-rows // 8) * 8) * (-(-columns // 128) * 128) * dtype.itemsize


def _largest_divisor(length: int, most: int) -> int:
    return max(size for size in range(1, max(most, 1) + 1) if length % size == 0)
