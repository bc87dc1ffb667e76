"""How long a step is estimated to take, and which form of the recurrence that decides for."""

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh

from configs import mmrec_7b, tiny
from mmrec_jax.config import Config, from_mapping
from mmrec_jax.errors import UserError
from mmrec_jax.learning.hardware import named_device
from mmrec_jax.learning.sharding import make_mesh
from mmrec_jax.learning.step_time import choose_recurrence, step_time, with_recurrence
from mmrec_jax.model.layout import AXES

LONG = {"batch_size": 32, "seq_len": 32_768}
ON_32 = AbstractMesh((1, 32, 1), AXES)


def config_of(size, form="auto", **train) -> Config:
    config = from_mapping(size.get_config())
    model = dataclasses.replace(config.model, recurrence=form)
    return dataclasses.replace(
        config, model=model, train=dataclasses.replace(config.train, **train)
    )


def test_a_scan_reads_its_weights_for_every_token():
    """24 layers, 32,768 steps of 4 x 4,096 x 8,192 bytes, and those forward, again and backward."""
    config = config_of(mmrec_7b, "scan", **LONG)
    assert config.model.remat
    seconds = 3 * 24 * 32_768 * (10e-6 + 4 * 4_096 * 8_192 / 3.35e12)
    found = step_time(config, named_device("H100"), ON_32)
    assert found.recurrence == pytest.approx(seconds)
    assert found.total > seconds
    assert 5 < found.products < 7  # 7.7e10 FLOPs for each of 32,768 tokens, at 4e14 FLOP/s


def test_sweeps_compute_what_a_scan_waits_for():
    """5 sweeps of 64 steps, in each of which 512 rows are multiplied by [4,096, 8,192]."""
    seconds = 3 * 24 * 5 * 64 * (10e-6 + 2 * 512 * 4_096 * 8_192 / 6.7e13)
    found = step_time(config_of(mmrec_7b, "parallel", **LONG), named_device("H100"), ON_32)
    assert found.recurrence == pytest.approx(seconds)


@pytest.mark.parametrize("device", ["H100", "H200", "v5e", "v5p", "v6e"])
def test_the_faster_form_is_chosen(device):
    device = named_device(device)
    assert choose_recurrence(config_of(mmrec_7b, **LONG), device, ON_32) == "parallel"
    step_by_step = "fused" if device.on_chip else "scan"
    assert choose_recurrence(config_of(tiny), device) == step_by_step  # T is only 256
    # So many sequences that every step of the scan is as much work as it can do at once, and too
    # many for the memory on a chip.
    assert choose_recurrence(config_of(tiny, batch_size=2**14), device) == "scan"
    for form in ("scan", "parallel"):
        assert choose_recurrence(config_of(mmrec_7b, form, **LONG), device, ON_32) == form


def test_the_kernel_does_not_wait():
    """256 steps of 4 layers, forward and backward, each as if for 45 sequences; not for 8."""
    found = step_time(config_of(tiny, batch_size=8), named_device("v5e"))
    assert found.recurrence == pytest.approx(2 * 4 * 256 * (1e-7 + 4 * 45 * 128**2 / (1.97e14 / 6)))
    assert found.recurrence < found.consolidation


def test_a_kernel_that_does_not_fit_is_refused():
    config = config_of(mmrec_7b, "fused")
    why = "a v5p has 67,108,864 bytes for weights and states on the chip"
    with pytest.raises(UserError, match=f"model.recurrence = fused is not possible: {why}"):
        choose_recurrence(config, named_device("v5p"))
    for other in (None, named_device("H100")):  # it is the scan there
        assert choose_recurrence(config, other) == "scan"


def test_cpus_scan():
    config = config_of(mmrec_7b)
    assert choose_recurrence(config, None) == "scan"
    mesh = make_mesh(config_of(tiny), jax.devices())
    assert with_recurrence(config, mesh).model.recurrence == "scan"
    assert with_recurrence(config_of(tiny, "parallel"), mesh).model.recurrence == "parallel"


def test_a_device_whose_figures_are_not_known_is_refused():
    with pytest.raises(UserError, match=r"'H101' are not known; known are H200, H100"):
        named_device("H101")
