"""What devices can do, from the data sheets of their vendors; that of CPUs is measured.

The peak in model FLOP/s utilization (MFU; Chowdhery et al., 2022) is that of dense bfloat16 matrix
products (float16 for V100), whatever dtype a run uses.
"""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmrec_jax.errors import UserError

# FLOP/s by a part of JAX's name of the device; the first that fits counts. Sources: NVIDIA's data
# sheets of each GPU (SXM form, without sparsity), and Google Cloud's pages of each TPU version.
PEAKS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40": 1.81e14,
    "L4": 1.21e14,
    "A10": 1.25e14,
    "V100": 1.25e14,
    "TPU v6 lite": 9.18e14,
    "TPU v5 lite": 1.97e14,
    "TPU v5": 4.59e14,
    "TPU v4": 2.75e14,
    "TPU v3": 1.23e14,  # per chip
}
MEASURED_DIM, MEASURED_SECONDS = 1_024, 0.2


class Device(NamedTuple):
    """The figures from which the time of a step is estimated."""

    name: str
    peak: float  # FLOP/s of dense bfloat16 matrix products
    default: float  # FLOP/s of float32 matrix products at JAX's default precision
    highest: float  # FLOP/s of float32 matrix products at precision "highest"
    bandwidth: float  # bytes/s of its memory
    wait: float  # seconds that an operation in a loop takes besides its work
    on_chip: int = 0  # bytes of a memory on the chip that one kernel can use


def _gpu(name: str, highest: float, bandwidth: float) -> Device:
    """At default precision a GPU multiplies float32 as TF32, at half the rate of bfloat16.

    The wait is an estimate of what it takes to launch a kernel.
    """
    return Device(name, PEAKS[name], PEAKS[name] / 2, highest, bandwidth, wait=5e-6)


def _tpu(name: str, kind: str, bandwidth: float, on_chip: int) -> Device:
    """A TPU multiplies float32 in one pass of bfloat16 at default precision, in six at "highest".

    The wait is half the time that its compiler estimates for a small step of a scan: 4,061 cycles
    of 1.5 to 1.75 GHz (`python -m benchmarks.fused_scan`). The memory on the chip (VMEM) is that of
    `jax.experimental.pallas.tpu.get_tpu_info`.
    """
    peak = PEAKS[kind]
    return Device(name, peak, peak, peak / 6, bandwidth, 1.2e-6, on_chip)


DEVICES = {  # as PEAKS, and from the same sources
    "H200": _gpu("H200", 6.7e13, 4.8e12),
    "H100": _gpu("H100", 6.7e13, 3.35e12),
    "A100": _gpu("A100", 1.95e13, 2.04e12),
    "TPU v6 lite": _tpu("v6e", "TPU v6 lite", 1.64e12, 2**27),
    "TPU v5 lite": _tpu("v5e", "TPU v5 lite", 8.19e11, 2**27),
    "TPU v5": _tpu("v5p", "TPU v5", 2.77e12, 2**26),
}
_LIKE = {"gpu": "A100", "tpu": "TPU v5 lite"}  # what an unknown accelerator is taken for


def known_peak(device_kind: str) -> float | None:
    """FLOP/s of a device; None if its kind is not known."""
    return _first_that_fits(PEAKS, device_kind)


def named_device(name: str) -> Device:
    """The figures of a device that is called H100, v5e, ...

    Raises:
        UserError: they are not known.
    """
    by_name = {device.name.lower(): device for device in DEVICES.values()}
    if name.lower() not in by_name:
        known = ", ".join(device.name for device in DEVICES.values())
        raise UserError(f"the figures of a device {name!r} are not known; known are {known}")
    return by_name[name.lower()]


def figures(device: jax.Device) -> Device | None:
    """The figures of a device, or of one like it; None for a CPU."""
    if device.platform == "cpu":
        return None
    found = _first_that_fits(DEVICES, device.device_kind)
    return found or DEVICES[_LIKE.get(device.platform, "A100")]


def _first_that_fits(table: dict, device_kind: str):
    return next((value for name, value in table.items() if name in device_kind), None)


def memory_bytes(device: jax.Device) -> int | None:
    """Bytes of memory that a device has; None if that is not known."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")


def measure_peak(devices: Sequence[jax.Device]) -> float:
    """FLOP/s of devices of this host together, in float32: those of the fastest of many rounds.

    In a round each multiplies two matrices, because virtual devices share the cores of a host. If
    other programs take turns on these, the fastest round is one that was not interrupted.
    """
    size = MEASURED_DIM, MEASURED_DIM
    matrices = [jnp.ones(size, device=device) for device in devices]
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready([multiply(x, x) for x in matrices])  # compiles
    fastest, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
    while (start := time.perf_counter()) < end:
        jax.block_until_ready([multiply(x, x) for x in matrices])
        fastest = min(fastest, time.perf_counter() - start)
    return len(matrices) * 2 * MEASURED_DIM**3 / fastest
