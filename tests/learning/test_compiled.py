"""What the devices send each other, read from the text of compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import code, medium, mmrec_7b, small, tiny
from mmrec_jax.config import from_mapping
from mmrec_jax.learning.compiled import Collective, collectives, lower_step
from mmrec_jax.learning.sharding import make_mesh
from small_runs import config, one_error_line, run, train_flags

# The layers in a loop, in each of which there is one over time.
PROGRAM = """
HloModule step

%of_time (x: f32[8]) -> f32[8] {
  %gather.1 = f32[8,4]{1,0} all-gather(%y), metadata={op_name="jit(step)/layers/while/body/WHERE"}
}

%of_layer (x: f32[8]) -> f32[8] {
  %gather.2 = bf16[16]{0} all-gather(%w), metadata={op_name="jit(step)/layers/while/body/gather"}
  %loop.1 = f32[8] while(%x), condition=%less, body=%of_time, metadata={op_name="jit(step)/layers/while/body/scan/while"}
}

%all-reduce-scatter.3 (x: f32[8]) -> f32[8] {
  %sum = (f32[4], s32[]) all-reduce(%x), to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop.2 = f32[8] while(%x), condition=%less, body=%of_layer, metadata={op_name="jit(step)/layers/while"}
  %fusion = f32[8] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("where", "loop"),
    [
        ("scan/while/body/top_k", "jit(step)/layers/while/body/scan/while"),
        ("gather", None),  # moved into the loop to be sent meanwhile
    ],
)
def test_collectives_are_counted_in_all_loops(where, loop):
    found = collectives(PROGRAM.replace("WHERE", where), {"layers": 3, "micro_batches": 1})
    assert found == [
        Collective("all-gather", bytes=32, times=3, loop=None),
        Collective("all-gather", bytes=128, times=3, loop=loop),
        Collective("reduce-scatter", bytes=20, times=1, loop=None),
    ]


def test_a_collective_in_a_loop_over_time_is_found():
    mesh = make_mesh(config(train__batch_size=8, mesh__fsdp=4), jax.devices())
    weights = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    h = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=NamedSharding(mesh, P()))

    @jax.jit
    def recurrence(h, weights):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ weights), None), h, length=17)[0]

    found = collectives(recurrence.lower(h, weights).compile().as_text(), {})
    assert any(collective.loop and collective.times == 17 for collective in found)


@pytest.mark.parametrize(
    "size",
    [code, *(pytest.param(x, marks=pytest.mark.slow) for x in (tiny, small, medium, mmrec_7b))],
)
def test_a_step_can_be_given_to_the_compilers_of_accelerators(size):
    cfg = from_mapping(size.get_config())
    mesh = make_mesh(cfg, jax.devices()[:1])
    loops = {}
    for form in ("scan", "parallel"):
        model = dataclasses.replace(cfg.model, recurrence=form)
        of_form = dataclasses.replace(cfg, model=model)
        text = lower_step(of_form, mesh, ("cuda", "tpu")).as_text()
        loops[form] = text.count("stablehlo.while")
        check_precision(text, of_form)
    # Forward, perhaps again, and backward: the sweeps, the steps of an interval, and two loops to
    # correct the guesses. All blocks are one function here.
    passes = 3 if cfg.model.remat else 2
    assert loops["parallel"] == loops["scan"] + 4 * passes


def check_precision(text, config):
    """What decides about the state is not rounded: the recurrence, saliency, the bank's cosines."""
    products = [line for line in text.splitlines() if "dot_general" in line]
    exact = {line for line in products if "precision = [HIGHEST, HIGHEST]" in line}
    model, train = config.model, config.train
    rows = f"{train.batch_size // train.accumulate_steps}x{2 * model.dim}xf32>"
    if model.recurrence == "parallel":
        rows = f"{train.seq_len // model.recurrence_interval}x{rows}"
    of_evidence = f"<{model.dim}x{4 * model.num_heads}xf32>"
    candidates = f"x{model.chunk_len + model.long_term}xf32>\n"
    # A step forward, one backward; evidence forward, and the gradient of what it is computed from.
    for part, count in ((f"<{rows}", 2), (of_evidence, 2), (candidates, 1)):
        found = {line for line in products if part in f"{line}\n"}
        assert len(found) >= count
        assert found <= exact
    assert len(exact) < len(products) / 3


def test_a_dry_run_can_compile_for_devices_that_do_not_exist(tmp_path):
    knobs = {"train.batch_size": 4, "mesh.data": 2, "mesh.fsdp": 2, "model.dim": 128}
    flags = train_flags(tmp_path / "run", **knobs)
    result = run("train.py", *flags, "--dry_run", "--compile", "--devices=4")
    assert result.returncode == 0, result.stderr
    assert "compiled for 4 x cpu" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    (ratio,) = (float(row[-1]) for row in rows if row[:3] == ["state", "and", "batch"])
    assert ratio == pytest.approx(1, abs=0.02)
    (gathers,) = (row for row in rows if row[:1] == ["all-gather"])
    assert int(gathers[1]) > 0
    assert gathers[-1] == "0"
    assert not (tmp_path / "run").exists()


def test_a_topology_without_its_compiler_or_its_name_is_refused(tmp_path):
    result = run("train.py", *train_flags(tmp_path / "run"), "--dry_run", "--topology=v9:1x1")
    assert "cannot compile for --topology=v9:1x1" in one_error_line(result)
