"""How long a step of the recurrence takes on a TPU: in XLA's scan, and in the fused kernel.

    python -m benchmarks.fused_scan
    python -m benchmarks.fused_scan --topology=v6e:2x2 --rows=2 --dim=128

Nothing is executed, and no TPU is needed, but libtpu is (pip install -e '.[tpu]'). Of the scan, the
table shows the cycles that XLA's compiler estimates for the operations in the body of the loop; of
the kernel, the bundles of instructions in the body of its loop. A bundle takes a cycle unless it
has to wait, so these are the least that it takes.
"""

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "A slice of the kind of TPU.")
_ROWS = flags.DEFINE_integer("rows", 8, "Sequences that are read at once.", lower_bound=1)
_DIM = flags.DEFINE_multi_integer("dim", [128, 256, 512, 1024], "D.")
STEPS = 256


def main():
    folder = tempfile.TemporaryDirectory()
    # Read when libtpu starts.
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder.name} --xla_jf_dump_llo_text=true"

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from mmrec_jax.learning.compiled import topology
    from mmrec_jax.model.fused_scan import fused_scan
    from mmrec_jax.model.layout import AXES
    from mmrec_jax.model.over_time import serial
    from mmrec_jax.model.recurrence import CoreInputs, CoreWeights, recurrence
    from mmrec_jax.tables import print_table

    mesh = Mesh(np.array(topology(_TOPOLOGY.value)[:1]).reshape(1, 1, 1), AXES)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def compiled(dim, solve) -> str:
        def array(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

        def objective(inputs, weights, h0, start):
            return jnp.sum(recurrence(inputs, weights, h0, start, 0.1, solve)[0] ** 2)

        x = array(_ROWS.value, STEPS, dim)
        weights = CoreWeights(array(dim, 2 * dim), array(dim))
        arguments = CoreInputs(x, x, x), weights, array(_ROWS.value, dim)
        start = array(_ROWS.value, STEPS, dtype=bool)
        with jax.set_mesh(mesh):
            gradient = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))
            return gradient.lower(*arguments, start).compile().as_text()

    rows = []
    for dim in _DIM.value:
        scan = _cycles_of_loops(compiled(dim, serial))
        before = set(Path(folder.name).iterdir())
        compiled(dim, fused_scan)
        kernel = _bundles_of_loops(set(Path(folder.name).iterdir()) - before)
        rows.append((f"{dim:,}", *(f"{x:,}" for x in (*scan, *kernel))))
    print(f"{_TOPOLOGY.value}, {_ROWS.value} sequences, float32 at precision highest")
    print_table(("D", "scan", "its gradient", "kernel", "its gradient"), rows)


def _cycles_of_loops(program: str) -> list[int]:
    """The estimated cycles of the bodies of all loops of a program, in their order."""
    cycles, bodies, computation = Counter(), [], ""
    for line in program.splitlines():
        if begins := re.match(r"(?:ENTRY )?%(\S+) \(.*\{$", line):
            computation = begins[1]
        if estimated := re.search(r'estimated_cycles":"(\d+)"', line):
            cycles[computation] += int(estimated[1])
        if loop := re.search(r" while\(.*body=%([^,\s]+)", line):
            bodies.append(loop[1])
    return [cycles[body] for body in bodies]


def _bundles_of_loops(dumped: set[Path]) -> list[int]:
    """The bundles of the innermost loop of each kernel, in the order of compilation."""
    texts = sorted(path for path in dumped if re.search(r"recurrence.*final_bundles", path.name))
    texts = [path.read_text() for path in texts if "schedule" not in path.name]
    depths = [re.findall(r"^\s*0x\w+[^:]*: (>+) \{", text, re.MULTILINE) for text in texts]
    return [depth.count(max(depth)) for depth in depths]


if __name__ == "__main__":
    cli.run(main, cached=False)
