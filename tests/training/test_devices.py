"""Training on several devices gives what one device gives, and continues on any others."""

import dataclasses
import itertools
import math
import shutil

import jax
import numpy as np
import pytest

from configs import mmrec_7b
from mmrec_jax.config import from_mapping
from mmrec_jax.data.batches import SplitWindows
from mmrec_jax.learning.compiled import collectives, compile_step
from mmrec_jax.learning.sharding import evaluation_mesh, make_mesh
from mmrec_jax.model import layout
from mmrec_jax.model.params import param_shapes
from mmrec_jax.report.evaluation import read_subject
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.training.loop import train
from small_runs import config, final_params

MESHES = [(1, 1), (2, 4)]
OTHER_MESHES = [(2, 1), (1, 4)]
STEPS, RESUMED_AT = 6, 3


@pytest.fixture(scope="module", autouse=True)
def everything_is_large():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SMALL", 64)
        yield


def small(data, fsdp, **changes):
    """Everything that could depend on the devices: random masks, carried memory, micro-batches."""
    plain = {
        "train__batch_size": 16,
        "train__eval_batch_size": 8,
        "train__accumulate_steps": 2,
        "train__carry_memory": True,
        "train__carry_windows": 2,
        "train__num_steps": STEPS,
        "train__warmup_steps": 2,
        "train__token_noise": 0.1,
        "train__checkpoint_every": RESUMED_AT,
        "train__keep_checkpoints": 9,
        "data__sample_chars": 4000,
    }
    mesh = {"mesh__data": data, "mesh__fsdp": fsdp}
    return config(**{**plain, **mesh, **changes})


def losses(path):
    return [line["loss"] for line in read_metrics(path, "train")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("meshes"), {}
    for mesh in MESHES:
        paths[mesh] = folder / "{}_{}".format(*mesh)
        train(small(*mesh), paths[mesh])
    return paths


@pytest.fixture(scope="module")
def other_runs(runs, tmp_path_factory):
    """On more meshes."""
    folder, paths = tmp_path_factory.mktemp("other_meshes"), dict(runs)
    for mesh in OTHER_MESHES:
        paths[mesh] = folder / "{}_{}".format(*mesh)
        train(small(*mesh), paths[mesh])
    return paths


def check_losses(path, other):
    np.testing.assert_allclose(losses(path), losses(other), rtol=1e-5)
    validation = [read_metrics(of, "evaluation")[-1]["loss"] for of in (path, other)]
    np.testing.assert_allclose(*validation, rtol=1e-5)


def test_the_losses_do_not_depend_on_the_devices(runs):
    check_losses(runs[2, 4], runs[1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", OTHER_MESHES)
def test_the_losses_do_not_depend_on_any_mesh(other_runs, mesh):
    check_losses(other_runs[mesh], other_runs[1, 1])


IN_TIME = {
    "mesh__time": 4,
    "model__recurrence": "parallel",
    "model__recurrence_interval": 4,
    "model__recurrence_tolerance": 1e-6,
}


@pytest.mark.slow
def test_the_losses_do_not_depend_on_who_divides_the_time(runs, tmp_path):
    train(small(1, 2, **IN_TIME), tmp_path / "run")
    check_losses(tmp_path / "run", runs[1, 1])


def test_devices_that_divide_the_time_exchange_little_in_a_sweep():
    cfg = small(1, 2, **IN_TIME)
    program = compile_step(cfg, make_mesh(cfg, jax.devices())).as_text()
    found = collectives(program, {"micro_batches": 1, "sweeps": 1_000})
    assert {collective.loop for collective in found} == {None}
    sent = dict.fromkeys(("all-gather", "all-reduce"), 0)
    for collective in found:
        if collective.times >= 1_000:
            sent[collective.kind] += collective.bytes
    # States and gradients: what each part does to the one before it, 3 numbers per channel of each
    # sequence; the largest output and correction of each sequence; the change and the gain.
    sequences = cfg.train.batch_size // cfg.train.accumulate_steps // 2
    assert sent["all-gather"] == 2 * 4 * 3 * cfg.model.dim * sequences * 4
    assert sent["all-reduce"] == 2 * (2 * sequences + 2) * 4


@pytest.mark.parametrize(("before", "after"), [((1, 1), (2, 4)), ((2, 4), (1, 1))])
def test_a_run_continues_on_other_devices(runs, tmp_path, before, after):
    check_continued(runs, tmp_path, before, after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), list(itertools.permutations([*MESHES, *OTHER_MESHES], 2))
)
def test_a_run_continues_on_any_mesh(other_runs, tmp_path, before, after):
    check_continued(other_runs, tmp_path, before, after)


def check_continued(runs, tmp_path, before, after):
    path = tmp_path / "moved"
    shutil.copytree(runs[before], path)
    for checkpoint in (path / "checkpoints").glob("[0-9]*"):
        if int(checkpoint.name) > RESUMED_AT:
            shutil.rmtree(checkpoint)
    train(small(*after), path)
    np.testing.assert_allclose(losses(path), losses(runs[before]), rtol=1e-5)


def test_a_run_continues_on_the_same_devices_bit_for_bit(runs, tmp_path):
    path = tmp_path / "again"
    train(small(2, 4, train__num_steps=STEPS), path)
    assert losses(path) == losses(runs[2, 4])
    for x, y in zip(final_params(path), final_params(runs[2, 4]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_run_with_stacked_layers_is_saved_and_grows_like_any_other(runs, tmp_path):
    deep = {"model__num_layers": 2, "train__accumulate_steps": 1, "train__optimizer": "muon"}
    paths = {how: tmp_path / how for how in ("never", "always")}
    for how, path in paths.items():
        cfg = small(1, 4, model__scan_layers=how, **deep)
        grown = dataclasses.replace(cfg.growth, old_rate=0.5, placement="spread", warmup_steps=2)
        train(dataclasses.replace(cfg, init_from=str(runs[1, 1]), growth=grown), path)
    np.testing.assert_allclose(losses(paths["always"]), losses(paths["never"]), rtol=1e-5)
    for x, y in zip(*map(final_params, paths.values()), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_the_shapes_of_parameters_do_not_depend_on_where_they_were_first_asked_for():
    cfg = small(2, 4, model__dim=24)  # a model that no other test has
    with jax.set_mesh(make_mesh(cfg, jax.devices())):
        param_shapes(cfg.model)
    assert all(x.sharding is None for x in jax.tree.leaves(param_shapes(cfg.model)))


@pytest.mark.slow
def test_growth_does_not_depend_on_the_devices(runs, tmp_path, capsys):
    starts = {}
    for mesh in ((1, 1), (2, 4)):
        larger = small(*mesh, model__dim=32, model__num_layers=2, train__num_steps=2)
        growth = dataclasses.replace(larger.growth, warmup_steps=1, old_rate=0.5)
        larger = dataclasses.replace(larger, init_from=str(runs[2, 4]), growth=growth)
        train(larger, tmp_path / f"{mesh}")
        starts[mesh] = [line["loss"] for line in read_metrics(tmp_path / f"{mesh}", "evaluation")]
    np.testing.assert_allclose(starts[2, 4], starts[1, 1], rtol=1e-5)
    of_source = read_metrics(runs[2, 4], "evaluation")[-1]["loss"]
    np.testing.assert_allclose(starts[2, 4][0], of_source, rtol=1e-5)


def test_a_run_is_evaluated_on_its_devices_or_on_those_that_there_are(runs):
    run = open_run(runs[2, 4])
    subject = read_subject(run, "final")
    assert dict(subject.mesh.shape) == {"data": 2, "fsdp": 4, "time": 1}
    alone = evaluation_mesh(run.config, jax.devices()[:1])
    assert alone.size == 1
    on_one = subject._replace(mesh=alone, params=run.params(subject.step, alone))
    text = SplitWindows(run.split("test"), 8, run.config.train.seq_len)
    losses = [each.evaluate(text, carry_memory=True).loss for each in (subject, on_one)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


# --- what devices send each other ---


@pytest.mark.parametrize(
    ("scan_layers", "recurrence"),
    [
        ("always", "scan"),
        pytest.param("always", "parallel", marks=pytest.mark.slow),
        pytest.param("never", "scan", marks=pytest.mark.slow),
    ],
)
def test_devices_do_not_wait_for_each_other_inside_a_sequence(scan_layers, recurrence):
    cfg = small(
        2,
        2,
        model__scan_layers=scan_layers,
        model__num_layers=2,
        model__recurrence=recurrence,
        model__recurrence_interval=8,
        train__accumulate_steps=1,
    )
    compiled = compile_step(cfg, make_mesh(cfg, jax.devices()))
    rounds = {"layers": cfg.model.num_layers, "micro_batches": 1, "sweeps": 1}
    found = collectives(compiled.as_text(), rounds)
    assert {collective.loop for collective in found} == {None}
    # Weights are gathered for the forward pass of each layer and again for its backward pass.
    kernels = 11 * cfg.model.num_layers
    gathers = sum(x.times for x in found if x.kind == "all-gather")
    assert gathers >= 2 * kernels


@pytest.mark.slow
def test_the_weights_of_a_large_model_are_gathered_twice_per_step():
    """Once before each pass; neither in a loop over time nor for the optimizer."""
    values = mmrec_7b.get_config()
    values.train.batch_size = len(jax.devices())
    values.model.num_layers = len(jax.devices()) + 1  # which they cannot divide evenly
    cfg = from_mapping(values)
    compiled = compile_step(cfg, make_mesh(cfg, jax.devices()))
    found = collectives(compiled.as_text(), {"layers": cfg.model.num_layers, "micro_batches": 1})
    assert {collective.loop for collective in found} == {None}
    gathered = sum(x.bytes * x.times for x in found if x.kind == "all-gather")
    weights = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(param_shapes(cfg.model)))
    assert 1.9 * weights < gathered < 2.0 * weights
