"""Growing against starting fresh: validation loss of mini against FLOPs, on a text of characters.

    python -m benchmarks.growth --text=tinyshakespeare.txt
    python -m benchmarks.growth --text=tinyshakespeare.txt --run=scratch_1e-3 --run=grown

Each run is configs/shakespeare.py with what RUNS says; FLOPs (mmrec_jax/plan.py) of a grown run are
those of all its sources too. What an earlier call has done is not done again. Prints a table, and
draws growth.png beside the runs.
"""

from typing import NamedTuple

from absl import flags

_TEXT = flags.DEFINE_string("text", None, "A UTF-8 file.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/growth", "Folder of the runs.")


class Run(NamedTuple):
    """A run: how configs/shakespeare.py is changed, and which run it grows from."""

    flags: str
    source: str = ""


MINI = "model.dim=256 model.num_layers=6 "
RUNS = {}
