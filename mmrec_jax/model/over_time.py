"""Two ways to run a recurrence over time: step by step, and all intervals of time at once.

`serial` is a scan: T steps, one after the other. `Shooting` needs far fewer: it divides time into
intervals of c steps and guesses the state x_j before each of them. A sweep reads all intervals at
once from their guesses, which gives the states Phi_j(x_j) after them, and corrects the guesses from
the first to the last:

    x_{j+1} <- Phi_j(x_j) + A_j (x_j(new) - x_j)

where A_j is the product over the interval of the diagonals of the Jacobians of the steps. It is
Newton's method for x_{j+1} = Phi_j(x_j), but for the rest of the Jacobian, which would be a matrix
for each interval. So the fixed point is the exact solution, and whatever the weights, the first k
intervals are exact after k sweeps; but if the recurrence forgets, all are after a few. A sweep is c
steps deep and as much work as the complete scan.

Bock and Plitt (1984) describe multiple shooting; Danieli et al. (2025) and Gonzalez et al. (2024)
Newton's method with the diagonal alone, for intervals of one step.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mmrec_jax.model import layout

# From the weights, the state and the inputs of a step: the next state, the output, and the diagonal
# of the Jacobian of the next state with respect to the state. States are [.., D], inputs [.., ...].
Step = Callable[[Any, Array, Any], tuple[Array, Array, Array]]


class Effort(NamedTuple):
    """What a solution took, in numbers that can be added."""

    sweeps: Float[Array, ""]
    scans: Float[Array, ""]  # 1 if the sweeps did not converge, and the scan was needed


class Solution(NamedTuple):
    """Of a recurrence over time."""

    outputs: Float[Array, "batch T ..."]
    last: Float[Array, "batch D"]  # state
    effort: Effort


@runtime_checkable
class Solver(Protocol):
    """A way to run a recurrence over time."""

    def __call__(
        self, step: Step, weights: Any, first: Array, xs: Any, reverse: bool = False
    ) -> Solution:
        """All steps.

        Args:
            step: of the recurrence.
            weights: a tree of what all steps are given.
            first: the state before the first step, [batch, D].
            xs: a tree of inputs [batch, T, ...].
            reverse: whether the recurrence runs from the last step to the first.
        """


# Where an interval makes a difference between states this many times larger, it does so with
# rounding errors, too. It is at most 2 in trained models, and more than 5 in chaotic ones.
_LARGEST_GAIN = 4.0

NO_EFFORT = Effort(np.zeros((), np.float32), np.zeros((), np.float32))


def serial(step: Step, weights: Any, first: Array, xs: Any, reverse: bool = False) -> Solution:
    """One step after the other (a `Solver`)."""
    step = functools.partial(step, weights)
    return Solution(*_serial(step, first, layout.whole_sequences(xs), reverse), NO_EFFORT)


def _serial(step, first: Array, xs: Any, reverse: bool) -> tuple[Array, Array]:
    def advance(x, inputs):
        x, output, _ = step(x, inputs)
        return x, output

    # Not unrolled: XLA's CPU compiler would recompute each step in the fusions of the next.
    last, outputs = lax.scan(advance, first, jax.tree.map(time_major, xs), reverse=reverse)
    return time_major(outputs), last


class Shooting(NamedTuple):
    """Multiple shooting (a `Solver`), until its error is within a tolerance, as far as can be told.

    JAX cannot differentiate it. If the sweeps do not converge, the solution is that of `serial`.
    """

    interval: int  # steps
    tolerance: float  # the largest error relative to the largest output of a sequence
    max_sweeps: int

    def __call__(
        self, step: Step, weights: Any, first: Array, xs: Any, reverse: bool = False
    ) -> Solution:
        """All steps."""
        if jax.tree.leaves(xs)[0].shape[1] <= self.interval:
            return serial(step, weights, first, xs, reverse)
        solve = functools.partial(_shoot, functools.partial(step, weights), self, reverse)
        return Solution(*layout.on_own_tokens(solve)(first, xs))


def _shoot(step, how: Shooting, reverse: bool, first: Array, xs: Any):
    """Of the tokens that this device has, if several devices divide the time."""
    length = jax.tree.leaves(xs)[0].shape[1]
    count = -(-length // how.interval)
    in_intervals = functools.partial(_in_intervals, interval=how.interval, reverse=reverse)
    of_intervals = jax.tree.map(in_intervals, xs)
    # The last interval is filled up with steps that change nothing.
    position = jnp.arange(count * how.interval).reshape(count, how.interval).T

    def sweep(x):
        def advance(carry, at):
            inputs, position = at
            x, product = carry
            new_x, output, slope = step(x, inputs)
            if length % how.interval:
                is_step = (position < length)[:, None, None]
                new_x = jnp.where(is_step, new_x, x)
                slope = jnp.where(is_step, slope, 1)
            return (new_x, product * slope), output

        begin = x, jnp.ones_like(x)
        (last, product), outputs = lax.scan(advance, begin, (of_intervals, position))
        return last, product, outputs

    def iterate(now: _Iteration) -> _Iteration:
        last, slope, outputs = sweep(now.x)
        correction = _corrections(slope, last, now.x, reverse)
        size = layout.largest_in_time(jnp.max(jnp.abs(outputs), axis=(0, 1, 3)))
        largest = layout.largest_in_time(jnp.max(jnp.abs(correction), axis=(0, 2)))
        change = layout.largest(jnp.max(jnp.where(largest == 0, 0, largest / size)))
        # What remains, if each change is the same part of the one before.
        rate = change / now.change
        error = jnp.where(rate < 1, change / (1 - rate), jnp.inf)
        # What intervals make of the difference to the guess before.
        given = jnp.linalg.norm(now.x - now.x_before, axis=-1)
        made = jnp.linalg.norm(last - now.last, axis=-1)
        is_noise = given <= how.tolerance * size
        gain = layout.largest(jnp.max(jnp.where(is_noise, 0, made / given)))
        return _Iteration(
            x=now.x + correction,
            x_before=now.x,
            last=last,
            outputs=outputs,
            change=change,
            error=jnp.where(change == 0, 0, error),
            gain=jnp.where(now.sweeps == 0, 0, gain),
            sweeps=now.sweeps + 1,
        )

    def is_solved(now: _Iteration):
        return (now.error <= how.tolerance) & (now.gain <= _LARGEST_GAIN)  # false for NaN

    def goes_on(now: _Iteration):
        can_be_solved = ~(now.gain > _LARGEST_GAIN) & (now.sweeps < how.max_sweeps)
        return ~is_solved(now) & can_be_solved

    is_first = layout.own_part(reverse) == 0
    guess = jnp.zeros((count, *first.shape), first.dtype)
    guess = guess.at[0].set(jnp.where(is_first, first, 0))
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(sweep, guess))
    infinite = jnp.full((), jnp.inf, first.dtype)
    begin = _Iteration(
        x=guess,
        x_before=nothing[0],
        last=nothing[0],
        outputs=nothing[2],
        change=infinite,
        error=infinite,
        gain=jnp.zeros((), first.dtype),
        sweeps=jnp.zeros((), jnp.int32),
    )
    with jax.named_scope("sweeps"):
        end = lax.while_loop(goes_on, iterate, begin)
    failed = ~is_solved(end)

    def scanned():
        outputs, last = _serial(step, first, layout.all_tokens(xs), reverse)
        return layout.own_tokens(outputs), last

    def solved():
        last = layout.all_parts(end.last[-1], reverse)[-1]
        return _from_intervals(end.outputs, length, reverse), last

    outputs, last = lax.cond(failed, scanned, solved)
    return outputs, last, Effort(end.sweeps.astype(jnp.float32), failed.astype(jnp.float32))


class _Iteration(NamedTuple):
    """What a sweep has found; N intervals of c steps."""

    x: Array  # [N, batch, D], the corrected guesses before each interval
    x_before: Array  # the guesses from which the rest was found
    last: Array  # [N, batch, D], after each interval
    outputs: Array  # [c, N, batch, ...]
    change: Array  # the largest correction, relative to the largest output of the sequence
    error: Array  # of the outputs, estimated; infinite if it cannot be estimated
    gain: Array  # by which an interval made the last correction larger, at most
    sweeps: Array


def _corrections(slope: Array, last: Array, x: Array, reverse: bool) -> Array:
    """y_{j+1} = slope_j y_j + last_j - x_{j+1} for all intervals, from y = 0 before the first.

    Devices that divide the time tell each other what their intervals do to the y before them.
    """
    nothing = jnp.zeros_like(x[:1])
    product, y = _after_each(slope, last - jnp.concatenate([x[1:], nothing]))
    product_of, end_of, x_of = layout.all_parts((product[-1], y[-1], x[0]), reverse)
    y = jnp.concatenate([nothing, y[:-1]])
    if len(x_of) == 1:
        return y

    def advance(y, part):
        product, end, x_next = part
        return product * y + end - x_next, y

    parts = product_of, end_of, jnp.roll(x_of, -1, axis=0)
    _, before = lax.scan(advance, nothing[0], parts)
    product = jnp.concatenate([jnp.ones_like(nothing), product[:-1]])
    return y + product * before[layout.own_part(reverse)]


def _after_each(slope: Array, offset: Array) -> tuple[Array, Array]:
    """For all j, what y_{j+1} = slope_j y_j + offset_j makes of y_0: a product of it, and a sum.

    In groups of about as many j as there are groups: first in each group, then what the groups
    before it add. `lax.associative_scan` takes longer to compile.
    """
    count = len(offset)
    size = math.ceil(count**0.5)

    def in_groups(x):
        x = jnp.pad(x, [(0, -count % size)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(-1, size, *x.shape[1:]), 0, 1)

    def advance(before, x):
        slope, offset = x
        after = slope * before[0], slope * before[1] + offset
        return after, after

    def advance_group(before, of_group):
        product, y = of_group
        return (product * before[0], product * before[1] + y), before

    def all_groups(x):
        return jnp.swapaxes(x, 0, 1).reshape(-1, *offset.shape[1:])[:count]

    of_groups = in_groups(slope), in_groups(offset)
    nothing = jnp.ones_like(of_groups[0][0]), jnp.zeros_like(of_groups[0][0])
    ends, (product, y) = lax.scan(advance, nothing, of_groups)
    _, before = lax.scan(advance_group, jax.tree.map(lambda x: x[0], nothing), ends)
    return all_groups(product * before[0]), all_groups(product * before[1] + y)


def time_major(x: Array) -> Array:
    """[batch, T, ..] -> [T, batch, ..], and the other way round."""
    return jnp.swapaxes(x, 0, 1)


def _in_intervals(x: Array, interval: int, reverse: bool) -> Array:
    """[batch, T, ..] -> [c, N, batch, ..], in the order of the recurrence; zeros at the end."""
    x = jnp.flip(x, axis=1) if reverse else x
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % interval)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(x.shape[0], -1, interval, *x.shape[2:])
    return jnp.moveaxis(x, (2, 1), (0, 1))


def _from_intervals(x: Array, length: int, reverse: bool) -> Array:
    """[c, N, batch, ..] -> [batch, T, ..]"""
    x = jnp.moveaxis(x, (0, 1), (2, 1))
    x = x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
    return jnp.flip(x, axis=1) if reverse else x
