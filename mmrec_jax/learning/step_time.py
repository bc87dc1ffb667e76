"""How long a training step takes on a device, estimated from its figures (hardware.py).

    products      FLOPs of matrix products, without those of the recurrence's steps, divided by
                  the FLOP/s of the model's dtype, of which runs of this size achieve 0.4 (38 to
                  43% in Grattafiori et al., 2024, Table 4)
    traffic       activations, written and read; weights, read twice and written; gradients and the
                  optimizer's state, read and written; divided by the memory's bandwidth
    recurrence    for each layer and micro-batch, once forward, once backward, and with model.remat
                  once more: as many steps one after the other as below

A step of the recurrence multiplies the states of n rows by the [D, 2D] matrix W, in float32, with
model.precision. It takes two waits of an operation, and the longer of the time to read W and of
4 n D^2 FLOPs.

    scan          T steps, of as many rows as the device has sequences
    fused         T steps for which W is not read, and which take 0.1 microseconds instead of the
                  waits; but a TPU multiplies fewer than 45 rows no faster than 45
    parallel      5 sweeps of c steps, of T / c times as many rows, which mesh.time divides

    consolidation for each layer and micro-batch, and each chunk: a step of the choice of the bank,
                  which takes 30 waits

The time of a step is the larger of products and traffic, plus recurrence and consolidation, which
nothing can overlap. What devices send each other is not included.
"""

import dataclasses
from typing import NamedTuple

from jax.sharding import AbstractMesh, Mesh

from mmrec_jax.config import Config
from mmrec_jax.errors import UserError
from mmrec_jax.learning.cost import ONE_DEVICE, count_flops, count_memory
from mmrec_jax.learning.hardware import Device, figures
from mmrec_jax.model.fused_scan import bytes_on_chip
from mmrec_jax.model.layout import TIME, num_parts

ACHIEVED = 0.4
# What trained models need at 64 steps per interval and a tolerance of 1e-5: 2 to 8, in the mean
# less than 5 (docs/scaling.md).
SWEEPS = 5
# Operations of a step, and of the consolidation of a chunk, in what XLA makes of them for TPUs.
STEP_OPERATIONS, CONSOLIDATION_OPERATIONS = 2, 30
# From what the compiler makes of the kernel for TPU v5e (docs/time.md).
FUSED_WAIT, FUSED_ROWS = 1e-7, 45


class StepTime(NamedTuple):
    """Seconds of a training step on one device."""

    products: float
    traffic: float
    recurrence: float
    consolidation: float

    @property
    def total(self) -> float:
        """Of a step."""
        return max(self.products, self.traffic) + self.recurrence + self.consolidation


def step_time(config: Config, device: Device, mesh: AbstractMesh = ONE_DEVICE) -> StepTime:
    """The time of a step, with `model.recurrence` as it would be chosen for this device."""
    model, train = config.model, config.train
    passes = _passes(config)
    of_steps = passes * 4 * model.dim**2 * model.num_layers
    flops = (count_flops(config).training - of_steps) * train.step_tokens / mesh.size
    rate = device.peak if model.dtype == "bfloat16" else device.default
    memory = count_memory(config, mesh)
    bytes_moved = 3 * memory.parameters + 2 * (
        memory.activations * train.accumulate_steps + memory.gradients + memory.optimizer
    )
    form = choose_recurrence(config, device, mesh)
    layers = model.num_layers * train.accumulate_steps
    chunks = train.seq_len // model.chunk_len if model.long_term else 0
    return StepTime(
        products=flops / (ACHIEVED * rate),
        traffic=bytes_moved / device.bandwidth,
        recurrence=passes * layers * recurrence_time(config, device, form, mesh),
        consolidation=layers * chunks * CONSOLIDATION_OPERATIONS * device.wait,
    )


def recurrence_time(
    config: Config, device: Device, form: str, mesh: Mesh | AbstractMesh = ONE_DEVICE
) -> float:
    """Seconds in which a form computes a layer's recurrence once."""
    model, length = config.model, config.train.seq_len
    rows, interval = _rows(config, mesh), model.recurrence_interval
    rate = device.highest if model.precision == "highest" else device.default

    def of_step(rows: int) -> float:
        read = 8 * model.dim**2 / device.bandwidth
        return STEP_OPERATIONS * device.wait + max(read, 4 * rows * model.dim**2 / rate)

    if form == "fused":
        return length * (FUSED_WAIT + 4 * max(rows, FUSED_ROWS) * model.dim**2 / rate)
    if form == "scan" or length <= interval:
        return length * of_step(rows)
    return SWEEPS * interval * of_step(rows * -(-length // (interval * mesh.shape[TIME])))


def possible_recurrences(
    config: Config, device: Device, mesh: Mesh | AbstractMesh = ONE_DEVICE
) -> list[str]:
    """The forms that a device can compute."""
    dim, state = config.model.dim, 4 * _rows(config, mesh) * config.model.dim
    # A step backward reads dL/dh, f and two slopes, and writes d.
    needed = bytes_on_chip(weights=8 * dim**2, state=state, of_step=5 * state)
    return ["scan", "parallel", *(["fused"] if needed <= device.on_chip else [])]


def choose_recurrence(
    config: Config, device: Device | None, mesh: Mesh | AbstractMesh = ONE_DEVICE
) -> str:
    """ "scan", "fused" or "parallel": what `model.recurrence` says, or what takes the least time.

    `device` is None for a CPU, which computes as much as its cores allow in all forms, so that the
    scan is the fastest.

    Raises:
        UserError: the device is a TPU and cannot compute what `model.recurrence` says.
    """
    wanted = config.model.recurrence
    if wanted == "auto" and device is None:
        return "scan"
    if wanted == "auto":
        forms = possible_recurrences(config, device, mesh)
        return min(forms, key=lambda form: recurrence_time(config, device, form, mesh))
    if wanted == "fused" and not (device and device.on_chip):
        return "scan"  # which it is where there are no TPUs
    if wanted == "fused" and wanted not in possible_recurrences(config, device, mesh):
        raise UserError(
            f"model.recurrence = {wanted} is not possible: a {device.name} has {device.on_chip:,} "
            f"bytes for weights and states on the chip, which is too little for model.dim "
            f"{config.model.dim}; use scan, parallel or auto"
        )
    return wanted


def with_recurrence(config: Config, mesh: Mesh) -> Config:
    """The config of a run with the form that is chosen for the devices of a mesh."""
    form = choose_recurrence(config, figures(mesh.devices.flat[0]), mesh)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, recurrence=form))


def _rows(config: Config, mesh: Mesh | AbstractMesh) -> int:
    """The sequences that a device reads at once."""
    train = config.train
    return max(train.batch_size // train.accumulate_steps // num_parts(mesh), 1)


def _passes(config: Config) -> int:
    return 3 if config.model.remat else 2
