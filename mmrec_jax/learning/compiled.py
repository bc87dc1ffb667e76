"""The training step as XLA compiles it, and what the devices send each other in it.

The text of a compiled program is one computation after another. A loop is an instruction `while`
that names the computation of its body, and the number of its rounds if XLA knows it.
"""

import math
import re
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from mmrec_jax.config import Config
from mmrec_jax.learning.optimizer import make_optimizer
from mmrec_jax.learning.sharding import batch_sharding, placed, shardings
from mmrec_jax.learning.step import abstract_batch, init_train_state, make_train_step
from mmrec_jax.model.interface import mmrec
from mmrec_jax.model.params import stack_layers

# Loops in which devices may wait for each other. All others run over time, or inside one token.
OUTER_LOOPS = ("layers", "micro_batches")

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
    times: int  # per run of the program; a loop of unknown length counts once
    loop: str | None  # the name of a loop over time around it, if there is one


def compile_step(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """The compiled training step of MM-Rec, from shapes alone."""
    optimizer = make_optimizer(config.train, optax.constant_schedule(0.0))
    model = mmrec(config.model)

    def fresh():
        state = init_train_state(config, optimizer, jax.random.key(0))
        return stack_layers(state) if model.stacks_layers else state

    batch = abstract_batch(config.train.batch_size, config.train.seq_len, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        state = placed(jax.eval_shape(fresh), mesh)
        step = make_train_step(config, optimizer, shardings=shardings(state))
        return step.lower(state, batch).compile()


def collectives(program: str) -> list[Collective]:
    """All collectives of a compiled program, given as text."""
    computations, entry = _computations(program)
    found = []

    def visit(name: str, times: int, loop: str | None) -> None:
        for line in computations.get(name, ()):
            if collective := _COLLECTIVE.search(line):
                result, kind = collective.groups()
                found.append(Collective(kind, _bytes(result), times, loop))
            is_while = " while(" in line
            rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', line) if is_while else None
            inside, times_inside = loop, times * int(rounds[1]) if rounds else times
            if is_while and loop is None:
                inside = _loop_over_time(line)
            for called in _CALLED.findall(line):
                for other in called.strip("{}").replace("%", "").split(", "):
                    visit(other, times_inside, inside)

    visit(entry, 1, None)
    return found


def _loop_over_time(line: str) -> str | None:
    """The name of a loop, unless it is one of `OUTER_LOOPS`."""
    name = re.search(r'op_name="([^"]*)"', line)
    name = name[1] if name else "without a name"
    last = name.removesuffix("/while").split("/")[-1]
    return None if any(outer in last for outer in OUTER_LOOPS) else name


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
