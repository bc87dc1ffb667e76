"""Tables of the cost of a run, printed by train.py --dry_run."""

import dataclasses
import time
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh

from mmrec_jax.config import Config
from mmrec_jax.learning.compiled import collectives, compile_step
from mmrec_jax.learning.cost import (
    count_flops,
    count_memory,
    count_parameters,
    divide_parameters,
)
from mmrec_jax.learning.hardware import Device
from mmrec_jax.learning.sharding import in_words, make_mesh, mesh_shape
from mmrec_jax.learning.step_time import (
    ACHIEVED,
    SWEEPS,
    choose_recurrence,
    possible_recurrences,
    step_time,
)
from mmrec_jax.model.layout import AXES, FSDP
from mmrec_jax.tables import print_table

_DAY = 86_400  # seconds


def print_plan(
    config: Config,
    devices: int,
    tokens: int,
    flops_per_second: float,
    device: Device | None = None,
) -> None:
    """Prints the cost of a run.

    Args:
        devices: how many there are; `config.mesh` says how they share the work.
        tokens: to train on; 0 takes their number from the config.
        flops_per_second: FLOP/s that one device achieves in training; 0 if unknown.
        device: its figures, from which the time of a step is estimated; None if unknown.

    Raises:
        UserError: the mesh does not fit.
    """
    train, model = config.train, config.model
    mesh = _mesh(config, devices)
    parameters, flops = count_parameters(model), count_flops(config)
    total, forward = sum(parameters.values()), sum(flops.forward.values())
    print(
        f"{config.name}: {total:,} parameters; V {model.vocab_size:,}, D {model.dim:,}, "
        f"L {model.num_layers}, H {model.num_heads}, K {model.head_dim}, S {model.short_term}, "
        f"C {model.chunk_len}, M {model.long_term}"
    )
    rows = []
    for part in dict.fromkeys([*parameters, *flops.forward]):
        count = parameters.get(part, 0)
        share = f"{count / total:.1%}" if count else ""
        of_part = f"{flops.forward[part]:,}" if part in flops.forward else ""
        rows.append((part, f"{count:,}" if count else "", share, of_part))
    rows += [
        (),
        ("total, forward", f"{total:,}", "100.0%", f"{forward:,}"),
        ("training", "", "", f"{flops.training:,}"),
    ]
    print_table(("", "parameters", "share", "FLOPs per token"), rows)

    if mesh.shape[FSDP] > 1:
        _print_divisions(config, mesh)
    of_step = f"{train.batch_size} x {train.seq_len:,} tokens per step"
    memory, of_one = count_memory(config), count_memory(config, mesh)
    names = (*memory._fields, "total")
    sizes = zip(names, (*memory, sum(memory)), (*of_one, sum(of_one)), strict=True)
    print_table(
        (of_step, "GB", f"GB per device, {_with_number(mesh, devices)}"),
        [
            (name, f"{size / 1e9:,.3f}", f"{of_device / 1e9:,.3f}")
            for name, size, of_device in sizes
            if of_device
        ],
    )
    if device:
        _print_step_time(config, device, mesh)
    tokens = tokens or train.fixed_steps * train.step_tokens
    if not tokens:
        print("for the training time, give --tokens, and --device or --flops")
        return
    work = tokens * flops.training
    line = f"{tokens:,} tokens: {work:.3g} FLOPs"
    if flops_per_second:
        days = _days(work, mesh.size, flops_per_second)
        line += f", {days:,.2f} days on {mesh.size} x {flops_per_second:.3g} FLOP/s"
    if device:
        days = tokens / train.step_tokens * step_time(config, device, mesh).total / _DAY
        line += f", {days:,.2f} days on {mesh.size} x {device.name}"
    print(line)


def _print_step_time(config: Config, device: Device, mesh: AbstractMesh) -> None:
    """Prints the parts of a step's time, with the recurrence in each form."""
    chosen, rows = choose_recurrence(config, device, mesh), []
    names = {"scan": "by the scan", "parallel": "in parallel", "fused": "in one kernel"}
    for form in possible_recurrences(config, device, mesh):
        model = dataclasses.replace(config.model, recurrence=form)
        parts = step_time(dataclasses.replace(config, model=model), device, mesh)
        name = f"{names[form]}{' (chosen)' if form == chosen else ''}"
        rows.append((name, *(f"{seconds:,.3g}" for seconds in (*parts, parts.total))))
    columns = ("products", "traffic", "recurrence", "bank", "total")
    print_table((f"seconds, {device.name}", *columns), rows)
    waits = f"{device.wait * 1e6:.2g} microseconds per operation in a loop"
    print(
        f"estimated from {ACHIEVED:.0%} of {device.peak:.3g} FLOP/s in bfloat16,\n"
        f"{device.highest:.3g} FLOP/s in float32, {device.bandwidth:.3g} bytes/s, {waits},\n"
        f"and {SWEEPS} sweeps of {config.model.recurrence_interval} steps; what devices send each "
        "other is not included"
    )


def print_compiled(config: Config, devices: Sequence[jax.Device]) -> None:
    """Compiles the training step for a mesh of these devices, and prints what it needs.

    Raises:
        UserError: the mesh does not fit.
    """
    mesh, start = make_mesh(config, devices), time.perf_counter()
    compiled = compile_step(config, mesh)
    seconds = time.perf_counter() - start
    kind = mesh.devices.flat[0].device_kind
    print(f"compiled for {mesh.size} x {kind} in {seconds:.0f} s")
    planned, found = count_memory(config, mesh.abstract_mesh), compiled.memory_analysis()
    state = planned.parameters + planned.optimizer
    state += planned.memory if config.train.carry_memory else 0
    rows = [
        ("state and batch", state, found.argument_size_in_bytes),
        ("temporaries", sum(planned) - state, found.temp_size_in_bytes),
    ]
    rows.append(("total", *(sum(sizes) for sizes in list(zip(*rows, strict=True))[1:])))
    print_table(
        ("GB per device", "planned", "compiled", "ratio"),
        [
            (name, f"{plan / 1e9:,.3f}", f"{size / 1e9:,.3f}", f"{plan / size:.2f}")
            for name, plan, size in rows
        ],
    )
    _print_collectives(config, compiled.as_text())


def _print_collectives(config: Config, program: str) -> None:
    rounds = {
        "layers": config.model.num_layers,
        "micro_batches": config.train.accumulate_steps,
        "sweeps": SWEEPS,
    }
    found = collectives(program, rounds)
    rows = []
    for kind in dict.fromkeys(sorted(collective.kind for collective in found)):
        alike = [collective for collective in found if collective.kind == kind]
        sent = sum(collective.times * collective.bytes for collective in alike)
        in_time = [collective for collective in alike if collective.loop is not None]
        times = sum(collective.times for collective in alike)
        waits = sum(collective.times for collective in in_time)
        rows.append((kind, f"{times:,}", f"{sent / 1e9:,.3f}", f"{waits:,}"))
    if not rows:
        print("the devices send each other nothing")
        return
    print_table(("per step", "times", "GB per device", "in loops over time"), rows)


def print_plans(
    configs: list[Config],
    devices: int,
    tokens: int,
    flops_per_second: float,
    device: Device | None = None,
) -> None:
    """Prints the cost of several runs, one per line; arguments as for `print_plan`."""
    rows = []
    for config in configs:
        mesh, train = _mesh(config, devices), config.train
        flops, memory = count_flops(config).training, count_memory(config, mesh)
        of_run = tokens or train.fixed_steps * train.step_tokens
        days = ""
        if of_run and device:
            steps = of_run / train.step_tokens
            days = f"{steps * step_time(config, device, mesh).total / _DAY:,.2f}"
        elif of_run and flops_per_second:
            days = f"{_days(of_run * flops, mesh.size, flops_per_second):,.2f}"
        rows.append(
            (
                config.name,
                f"{sum(count_parameters(config.model).values()):,}",
                f"{flops:.3g}",
                f"{train.batch_size} x {train.seq_len:,}",
                f"{sum(memory) / 1e9:,.2f}",
                days,
            )
        )
    print_table(("", "parameters", "FLOPs/token", "tokens/step", "GB", "days"), rows)
    of_tokens = f"; days for {tokens:,} tokens" if tokens else ""
    print(f"GB per device (of {devices}){of_tokens}")


def _print_divisions(config: Config, mesh: AbstractMesh) -> None:
    rows = []
    for name, shape, count, axis, size in divide_parameters(config.model, mesh):
        sizes = [f"{length:,}" for length in shape]
        if axis is not None:
            sizes[axis] += f" / {mesh.shape[FSDP]}"
        rows.append((name, f"{count}", " x ".join(sizes), f"{size / 1e6:,.3f}"))
    print_table(("parameters", "", "divided over fsdp", "MB per device"), rows)


def _mesh(config: Config, devices: int) -> AbstractMesh:
    """The mesh of a run that has this many devices."""
    return AbstractMesh(mesh_shape(config, devices), AXES)


def _with_number(mesh: AbstractMesh, devices: int) -> str:
    return in_words(mesh) if mesh.size == devices else f"{in_words(mesh)} of {devices}"


def _days(work: float, devices: int, flops_per_second: float) -> float:
    return work / (devices * flops_per_second) / _DAY
