"""The training step as XLA compiles it, and what the devices send each other in it.

The text of a compiled program is one computation after another. A loop is an instruction `while`
that names the computation of its body, and the number of its rounds if XLA knows it.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from mmrec_jax.config import Config
from mmrec_jax.errors import UserError
from mmrec_jax.learning.optimizer import make_optimizer
from mmrec_jax.learning.sharding import batch_sharding, placed, shardings
from mmrec_jax.learning.step import abstract_batch, init_train_state, make_train_step
from mmrec_jax.learning.step_time import with_recurrence
from mmrec_jax.model import ops
from mmrec_jax.model.interface import mmrec
from mmrec_jax.model.params import stack_layers

# Loops in which devices may wait for each other. All others run over time, or inside one token.
OUTER_LOOPS = ("layers", "micro_batches", "sweeps")

_KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
_COLLECTIVE = re.compile(rf"= (.+?) ({_KINDS})(?:-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)"
    r"=(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"([a-z]+)(\d+)?(?:\w*)?\[([\d,]*)\]")


class Collective(NamedTuple):
    """An instruction in which devices exchange data."""

    kind: str  # such as "all-gather"
    bytes: int  # of its result on one device
    times: int  # per step; a loop over time of unknown length counts once
    loop: str | None  # a loop over time in which devices wait for each other, if there is one


def topology(name: str) -> list[jax.Device]:
    """TPUs that are not there, for which libtpu can compile: "v5p:2x4x4", for example.

    Raises:
        UserError: libtpu is not installed, or does not know the topology.
    """
    from jax.experimental import topologies

    # So libtpu neither looks for TPUs nor asks a metadata server for them.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot compile for --topology={name} ({reason}); it needs libtpu "
            "(pip install -e '.[tpu]') and the name of a slice, such as v5p:2x4x4"
        ) from error


def compile_step(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """The compiled training step of MM-Rec, from shapes alone.

    The devices of the mesh may be those of a topology that is not there (`topology`).
    """
    return lower_step(config, mesh, (mesh.devices.flat[0].platform,)).compile()


def lower_step(config: Config, mesh: Mesh, platforms: Sequence[str]) -> jax.stages.Lowered:
    """The training step as it is given to the compilers of platforms: "cpu", "cuda", "tpu".

    They need not be those of the mesh.
    """
    optimizer = make_optimizer(config.train, optax.constant_schedule(0.0))
    model = mmrec(with_recurrence(config, mesh).model)

    def fresh():
        state = init_train_state(config, optimizer, jax.random.key(0))
        return stack_layers(state) if model.stacks_layers else state

    batch = abstract_batch(config.train.batch_size, config.train.seq_len, batch_sharding(mesh))
    is_cpu = tuple(platforms) == ("cpu",)
    with jax.set_mesh(mesh), ops.plain(*(() if is_cpu else ops.OPERATIONS)):
        state = placed(jax.eval_shape(fresh), mesh)
        step = make_train_step(config, optimizer, model, shardings(state))
        return step.trace(state, batch).lower(lowering_platforms=tuple(platforms))


def collectives(program: str, rounds: Mapping[str, int]) -> list[Collective]:
    """All collectives of a compiled program, given as text.

    `rounds`: of the loops in `OUTER_LOOPS`.
    """
    computations, entry = _computations(program)
    found = []

    def visit(name: str, times: int, loop: str | None) -> None:
        for line in computations.get(name, ()):
            if collective := _COLLECTIVE.search(line):
                result, kind = collective.groups()
                if name.startswith("all-reduce-scatter"):  # TPUs: a fusion of both
                    kind = "reduce-scatter"
                waits = loop is not None and _is_of_loop(_op_name(line))
                found.append(Collective(kind, _bytes(result), times, loop if waits else None))
            inside, times_inside = loop, times
            if " while(" in line:
                known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                outer = _outer_loop(_op_name(line).removesuffix("/while"))
                times_inside *= rounds[outer] if outer else int(known[1]) if known else 1
                inside = loop or (None if outer else _op_name(line))
            for called in _CALLED.findall(line):
                for other in called.strip("{}").replace("%", "").split(", "):
                    visit(other, times_inside, inside)

    visit(entry, 1, None)
    return found


def _op_name(line: str) -> str:
    """Where an instruction comes from in the program as JAX traced it."""
    name = re.search(r'op_name="([^"]*)"', line)
    return name[1] if name else "while"  # unknown: in a loop


def _outer_loop(path: str) -> str | None:
    """Which of `OUTER_LOOPS` the last part of a path names."""
    last = path.split("/")[-1]
    return next((outer for outer in OUTER_LOOPS if outer in last), None)


def _is_of_loop(path: str) -> bool:
    """Whether an instruction was traced in a loop over time.

    A compiler may move others there, to send while the loop computes; nobody waits for those.
    """
    return any(_outer_loop(before) is None for before in re.findall(r"([^/]*)/?while", path))


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the first one to run."""
    computations, entry, lines = {}, "", []
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _bytes(shapes: str) -> int:
    """Bytes of the arrays in a text such as "(f32[8,4]{1,0}, s32[])"."""
    total = 0
    for _, bits, shape in _ARRAY.findall(shapes):
        size = int(bits) // 8 if bits else 1
        total += size * math.prod(int(length) for length in shape.split(",") if length)
    return total
