"""The FLOP/s that devices could do."""

import os

import jax
import pytest

from mmrec_jax.learning.hardware import known_peak, measure_peak


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("TPU v5p", 459e12),
        ("TPU v5 lite", 197e12),
    ],
)
def test_accelerators_are_known_by_their_names(kind, peak):
    assert known_peak(kind) == peak


def test_the_peak_of_a_cpu_is_measured():
    assert known_peak("cpu") is None
    one, eight = measure_peak(jax.devices()[:1]), measure_peak(jax.devices())
    assert 1e9 < one / os.cpu_count() < 1e12
    assert eight < 4 * one  # they share the cores
