"""What a run needs before its first step: its plan, the state to start from, and its peak."""

import contextlib
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.commands import processes
from mmrec_jax.config import Config, flatten
from mmrec_jax.data.batches import Batches, training_batches
from mmrec_jax.data.dataset import Dataset, load_dataset
from mmrec_jax.errors import UserError
from mmrec_jax.files import write_text
from mmrec_jax.learning.cost import count_all_parameters, count_flops
from mmrec_jax.learning.hardware import known_peak, measure_peak, memory_bytes
from mmrec_jax.learning.optimizer import learning_rate_schedule, make_optimizer
from mmrec_jax.learning.sharding import local_rows, make_mesh, placed, shardings
from mmrec_jax.learning.step import TrainState, init_train_state
from mmrec_jax.learning.step_time import with_recurrence
from mmrec_jax.model.interface import ModelFunctions, mmrec
from mmrec_jax.model.params import stack_layers, unstack_layers
from mmrec_jax.runs import workdir as workdirs
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.provenance import provenance
from mmrec_jax.training.growing import Source, grown_state, open_source, slower_old_part
from mmrec_jax.training.moment import Throughput
from mmrec_jax.training.progress import Progress


class Run(NamedTuple):
    """Everything a run needs, made from its config before anything is written."""

    config: Config
    path: Path  # the workdir
    mesh: Mesh
    dataset: Dataset
    batches: Batches
    total_steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    model: ModelFunctions
    source: Source | None  # what the model grows from, if there is no checkpoint yet
    is_mmrec: bool


def plan_run(config: Config, path: Path, model: ModelFunctions | None = None) -> Run:
    """Makes everything a run needs, and so detects errors in the config or the corpus.

    `model` is MM-Rec unless another language model is given.

    Raises:
        UserError: something is wrong with the config, the corpus or the source.
    """
    if config.init_from and model is not None:
        raise UserError(
            f"init_from is {config.init_from!r}, but only MM-Rec can grow from another run; leave "
            "it empty"
        )
    workdirs.check_config(path, config)
    mesh = make_mesh(config, jax.devices())
    if model is None:
        _check_memory(config, mesh)
    dataset = load_dataset(config)
    source = None
    if config.init_from and not workdirs.has_checkpoints(path):
        source = open_source(config, dataset.tokenizer)
    rows = local_rows(mesh, config.train.batch_size)
    batches = training_batches(dataset.train, config, rows)
    total_steps = config.train.fixed_steps or config.train.num_epochs * batches.steps_per_epoch
    schedule = learning_rate_schedule(config.train, total_steps)
    optimizer = make_optimizer(config.train, schedule)
    if config.init_from and config.growth.old_rate != 1:
        optimizer = optax.chain(optimizer, slower_old_part(config))
    is_mmrec = model is None
    model = mmrec(with_recurrence(config, mesh).model) if is_mmrec else model
    return Run(
        config,
        path,
        mesh,
        dataset,
        batches,
        total_steps,
        schedule,
        optimizer,
        model,
        source,
        is_mmrec,
    )


def _check_memory(config: Config, mesh: Mesh) -> None:
    """Raises UserError if the parameters of a model cannot fit into memory."""
    count = count_all_parameters(config.model)
    # With gradients, and moments of the optimizer, of which Muon has one.
    need = count * 4 * (3 if config.train.optimizer == "muon" else 4) / mesh.shape["fsdp"]
    device = mesh.devices.flat[0]
    have = memory_bytes(device)
    if have is not None and need > have:
        raise UserError(
            f"the model has {count:,} parameters, which need {need / 1e9:,.0f} GB in training; "
            f"{device.device_kind} has {have / 1e9:,.0f} GB; lower model.dim, model.num_layers or "
            "model.vocab_size, or use more devices (mesh.fsdp)"
        )


def agree(run: Run) -> None:
    """Checks that all processes are about to do the same.

    Raises:
        UserError: they have different configs, texts or code.
    """
    config = flatten(dataclasses.asdict(run.config))
    mine = {
        **{f"config.{key}": value for key, value in config.items()},
        "the corpus": run.dataset.fingerprint,
        "the revision of the code": provenance()["revision"],
    }
    first, *others = processes.tell_all(mine)
    for index, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UserError(
                    f"{name} is {value!r} in process 0 and {other.get(name)!r} in process {index}; "
                    "start all processes with the same command, text and code"
                )


def with_source(run: Run, checkpoints: Checkpoints) -> Run:
    """The run with what it grows from, if it has to begin again because no checkpoint is left.

    Raises:
        UserError: it cannot grow from that.
    """
    if run.config.init_from and run.source is None and not checkpoints.steps():
        return run._replace(source=open_source(run.config, run.dataset.tokenizer))
    return run


def first_state(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, Progress, bool]:
    """The state and progress to start from, and whether the run is new."""
    config, seed = run.config, run.config.train.seed

    def fresh(params=None):
        return init_train_state(config, run.optimizer, jax.random.key(seed), params, run.model)

    abstract = placed(jax.eval_shape(fresh), run.mesh)
    restored = checkpoints.restore_newest(abstract, warn=print)
    if restored is not None:
        state, progress = restored[0], Progress.from_dict(restored[1])
    elif run.source is None:
        # One program lets each of several devices make its own part, but compiles slowly.
        params = run.model.init_params(jax.random.key(seed)) if run.mesh.size == 1 else None
        state = jax.jit(fresh, out_shardings=shardings(abstract), donate_argnums=0)(params)
        progress = Progress()
    else:
        tokenizer = run.dataset.tokenizer
        state = grown_state(run.source, config, tokenizer, run.optimizer, run.mesh)
        progress = Progress()
    if run.model.stacks_layers:
        stacked = placed(jax.eval_shape(stack_layers, abstract), run.mesh)
        state = jax.device_put(stack_layers(state), shardings(stacked))
    return state, progress, restored is None


def in_order(run: Run, rewinds: int) -> Run:
    """The run with its training text in another order for each number of rewinds."""
    if not rewinds:
        return run
    rows = local_rows(run.mesh, run.config.train.batch_size)
    batches = training_batches(run.dataset.train, with_order(run.config, rewinds), rows)
    return run._replace(batches=batches)


def with_order(config: Config, rewinds: int) -> Config:
    """The config whose seed gives the order of the training text after so many rewinds."""
    if not rewinds:
        return config
    seed = (config.train.seed + rewinds * 0x9E3779B97F4A7C15) % 2**63  # far apart
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))


def as_saved(run: Run, state: TrainState) -> TrainState:
    """A state as checkpoints have it: a block of parameters for each layer."""
    layers = run.config.model.num_layers
    return unstack_layers(state, layers) if run.model.stacks_layers else state


def throughput(run: Run) -> Throughput:
    """What the speed of a run is derived from; the peak of a CPU is kept in the workdir."""
    tokens, device = run.config.train.step_tokens, run.mesh.devices.flat[0]
    flops = count_flops(run.config).training * tokens if run.is_mmrec else None
    peak = known_peak(device.device_kind)
    if peak is not None:
        peak *= run.mesh.size
    elif device.platform == "cpu":  # the virtual devices of a host share its cores
        peak = _kept_peak(run)
        if peak is not None:
            peak *= jax.process_count()
    return Throughput(tokens, run.mesh.size, flops, peak)


def _kept_peak(run: Run) -> float | None:
    """The peak of this host's CPU in FLOP/s, measured once for a workdir."""
    file = run.path / "peak.json"
    with contextlib.suppress(Damaged, KeyError):
        return checksums.read_sealed(file)["flops_per_second"]
    if not processes.is_first():
        return None
    measured = measure_peak(run.mesh.local_devices)
    write_text(file, checksums.sealed({"flops_per_second": measured}))
    return measured
