"""How many FLOP/s devices could do, for model FLOP/s utilisation (MFU; Chowdhery et al., 2022).

The peak of an accelerator is that of dense bfloat16 matrix products in its vendor's data sheet
(float16 for V100), whatever dtype a run uses. That of a CPU is measured.
"""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# By a part of JAX's name of the device; the first that fits counts. Sources: NVIDIA's data sheets
# of each GPU (SXM form, without sparsity), and Google Cloud's pages of each TPU version.
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


def known_peak(device_kind: str) -> float | None:
    """FLOP/s of a device; None if its kind is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


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
