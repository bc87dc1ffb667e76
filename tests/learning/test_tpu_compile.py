"""Training steps as the compiler for TPUs compiles them, without TPUs: `make test-tpu-compile`."""

import importlib.util
import math

import jax
import pytest

from configs import mmrec_7b, small, tiny
from mmrec_jax.config import from_mapping
from mmrec_jax.learning.compiled import collectives, compile_step, topology
from mmrec_jax.learning.cost import count_memory
from mmrec_jax.learning.sharding import make_mesh
from mmrec_jax.model.params import param_shapes

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: pip install -e '.[tpu]'",
    ),
]


@pytest.mark.parametrize(
    ("size", "slice_", "recurrence"),
    [
        (tiny, "v5e:2x2", "scan"),
        (tiny, "v5e:2x2", "parallel"),
        (tiny, "v5e:2x2", "fused"),
        (small, "v5e:2x4", "scan"),
        (mmrec_7b, "v5p:2x4x4", "scan"),
    ],
)
def test_a_step_compiles_for_a_slice(size, slice_, recurrence):
    devices = topology(slice_)
    values = size.get_config()
    values.model.recurrence = recurrence
    values.mesh.data, values.mesh.fsdp = 1, len(devices)
    values.train.batch_size = max(values.train.batch_size, len(devices))
    cfg = from_mapping(values)
    mesh = make_mesh(cfg, devices)
    compiled = compile_step(cfg, mesh)
    rounds = {
        "layers": cfg.model.num_layers,
        "micro_batches": cfg.train.accumulate_steps,
        "sweeps": 1,
    }
    found = collectives(compiled.as_text(), rounds)
    assert any(collective.kind == "all-gather" for collective in found)
    assert {collective.loop for collective in found} == {None}
    if cfg.model.dtype == "bfloat16":  # weights are sent twice in it; the recurrence's in float32
        gathered = sum(x.bytes * x.times for x in found if x.kind == "all-gather")
        weights = sum(2 * math.prod(x.shape) for x in jax.tree.leaves(param_shapes(cfg.model)))
        assert gathered < 2.4 * weights
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert sum(count_memory(cfg, mesh.abstract_mesh)) > 0.8 * needed  # what is planned is enough
