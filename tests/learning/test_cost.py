"""The cost of a run: against the model's own program, the compiler, and initialized models."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from configs import base, large, medium, mini, mmrec_7b, small, tiny
from mmrec_jax.config import from_mapping
from mmrec_jax.errors import UserError
from mmrec_jax.learning.compiled import compile_step
from mmrec_jax.learning.cost import (
    count_flops,
    count_memory,
    count_parameters,
    divide_parameters,
)
from mmrec_jax.learning.hardware import named_device
from mmrec_jax.learning.sharding import make_mesh, placed
from mmrec_jax.learning.step import abstract_batch
from mmrec_jax.learning.step_time import step_time
from mmrec_jax.model.layout import AXES
from mmrec_jax.model.params import init_params, model_graph, param_shapes
from mmrec_jax.report.plan import print_plan
from small_runs import ROOT, config, run

SIZES = {  # of the ladder: V, D, L, H
    tiny: (5_000, 128, 4, 4),
    mini: (10_000, 256, 6, 4),
    small: (20_000, 512, 8, 8),
    base: (32_000, 1_024, 12, 8),
    medium: (32_000, 2_048, 16, 16),
    large: (32_000, 3_072, 20, 24),
    mmrec_7b: (32_000, 4_096, 24, 32),
}


def products(jaxpr) -> int:
    """FLOPs of the matrix products of a program, counting those in loops as often as they run.

    A product with a vector of ones is a sum (in the gradient of a bias) and is not counted.
    """
    total = 0
    for equation in jaxpr.eqns:
        shapes = [factor.aval.shape for factor in equation.invars[:2]]
        if equation.primitive.name == "dot_general" and min(map(len, shapes)) > 1:
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = shapes[0]
            length = math.prod(left[axis] for axis in contracted)
            total += 2 * length * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * products(inner)
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__use_uboo": True, "model__use_dpg": True, "model__saliency_queries": 5},
        {"model__remat": True, "model__use_uboo": True},
        {"model__long_term": 0, "model__num_layers": 3},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_flops_are_those_of_the_program(changes):
    cfg = config(**changes)
    graph = model_graph(cfg.model)
    params = param_shapes(cfg.model)
    tokens = jax.ShapeDtypeStruct((3, cfg.train.seq_len), jnp.int32)

    def loss(params, tokens, key):
        output = nnx.merge(graph, params)(tokens, tokens, None, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, tokens)
        return losses.mean() + output.aux.saliency + output.aux.uboo

    forward = jax.make_jaxpr(lambda p, t: loss(p, t, None))(params, tokens)
    training = jax.make_jaxpr(lambda p, t: jax.grad(loss)(p, t, jax.random.key(0)))(params, tokens)
    flops = count_flops(cfg)
    assert sum(flops.forward.values()) == products(forward.jaxpr) / tokens.size
    assert flops.training == products(training.jaxpr) / tokens.size


@pytest.mark.usefixtures("optimized")
def test_memory_is_what_the_compiler_allocates():
    cfg = config(
        model__dim=64,
        train__seq_len=256,
        train__batch_size=8,
        train__accumulate_steps=2,
    )
    compiled = compile_step(cfg, make_mesh(cfg, jax.devices())).memory_analysis()
    memory = count_memory(cfg)
    of_state = memory.parameters + memory.optimizer
    batch = abstract_batch(8, 256)
    inputs = sum(x.size * x.dtype.itemsize for x in batch)
    assert compiled.argument_size_in_bytes == pytest.approx(of_state + inputs, rel=0.01)
    assert compiled.temp_size_in_bytes == pytest.approx(memory.activations, rel=0.25)


@pytest.mark.parametrize(
    "size", [tiny, *(pytest.param(size, marks=pytest.mark.slow) for size in (mini, small))]
)
def test_parameters_are_those_of_an_initialized_model(size):
    cfg = from_mapping(size.get_config())
    params = init_params(cfg.model, jax.random.key(0))
    assert sum(count_parameters(cfg.model).values()) == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_the_shape_of_the_ladder(size):
    model = from_mapping(size.get_config()).model
    shape = model.vocab_size, model.dim, model.num_layers, model.num_heads
    assert shape == SIZES[size]
    assert model.use_dpg == (model.dim >= 2_048)
    assert model.use_uboo == (model.dim >= 3_072)


def test_the_largest_model_is_planned_without_being_initialized(tmp_path):
    flags = ["--dry_run", "--devices=32", "--tokens=2e11", "--flops=4e14", "--device=h100"]
    result = run("train.py", f"--config={ROOT / 'configs/mmrec_7b.py'}", *flags)
    assert result.returncode == 0, result.stderr
    cfg = from_mapping(mmrec_7b.get_config())
    days = 2e11 * count_flops(cfg).training / (32 * 4e14) / 86_400
    assert f"{sum(count_parameters(cfg.model).values()):,} parameters" in result.stdout
    assert f"{days:,.2f} days on 32 x 4e+14" in result.stdout
    assert "by the scan (chosen)" in result.stdout
    mesh = AbstractMesh((1, 32, 1), AXES)
    days = 2e11 / (512 * 2_048) * step_time(cfg, named_device("H100"), mesh).total / 86_400
    assert f"{days:,.2f} days on 32 x H100" in result.stdout
    assert not (ROOT / "runs/mmrec_7b").exists()


def test_memory_is_divided_among_devices(capsys):
    cfg = config(train__batch_size=8, train__num_tokens=1_000, mesh__data=-1)
    print_plan(cfg, devices=4, tokens=0, flops_per_second=0)
    printed = capsys.readouterr().out
    assert "1,024 tokens" in printed  # complete steps
    line = next(line for line in printed.splitlines() if "activations" in line)
    total, of_one = (float(x) for x in line.split()[1:])
    assert of_one == pytest.approx(total / 4, abs=0.001)
    with pytest.raises(UserError, match=r"mesh.data 3 x mesh.fsdp 1 does not fit"):
        print_plan(config(train__batch_size=8, mesh__data=3), 4, tokens=0, flops_per_second=0)


def test_parameters_are_divided_as_the_plan_says():
    cfg = config(train__batch_size=8, model__dim=64, mesh__fsdp=4)
    mesh = make_mesh(cfg, jax.devices())
    params = placed(param_shapes(cfg.model), mesh)
    on_one = [math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(params)]
    planned = divide_parameters(cfg.model, mesh.abstract_mesh)
    assert sum(division.bytes for division in planned) == sum(on_one)
    assert count_memory(cfg, mesh.abstract_mesh).parameters == sum(on_one)
    assert {division.axis for division in planned} == {None, 0, 1}
