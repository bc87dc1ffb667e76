"""Runs commands in processes forked from one that has imported everything they need.

So a command that fails at once takes some hundredths of a second, not the seconds of its imports.
"""

import functools
import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
IMPORTED = (
    "mmrec_jax.commands.cli", "mmrec_jax.commands.config_help", "mmrec_jax.commands.processes",
    "mmrec_jax.data.prepare", "mmrec_jax.data.sources.parquet",
    "mmrec_jax.inference.language_model", "mmrec_jax.report.evaluation",
    "mmrec_jax.report.loss_comparison", "mmrec_jax.report.page", "mmrec_jax.report.plan",
    "mmrec_jax.report.recall", "mmrec_jax.training.ladder", "mmrec_jax.training.loop",
    "ml_collections.config_flags",
)  # fmt: skip
PATIENCE = 60  # seconds, for the slowest machine


class Done(NamedTuple):
    """A command that has ended."""

    code: int | None  # its exit code; None if it had to be killed
    out: str
    error: str
    seconds: float


class ForkedCommands:
    """The process to fork from."""

    def __init__(self, folder: Path):
        """`folder`: for what the commands print."""
        self._printed = folder / "printed"
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, script: str, *flags: str, **environment: str) -> Done:
        """Runs a script of the repository, or a module."""
        start = time.perf_counter()
        task = {"argv": [script, *flags], "environment": environment, "to": str(self._printed)}
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        has_ended = select.select([self._server.stdout], [], [], PATIENCE)[0]
        if not has_ended:
            os.kill(pid, signal.SIGKILL)
        code = int(self._server.stdout.readline())
        out, error = (Path(f"{self._printed}.{n}").read_text() for n in (1, 2))
        return Done(code if has_ended else None, out, error, time.perf_counter() - start)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    for name in IMPORTED:
        importlib.import_module(name)
    # JAX looks for plugins among all packages that are installed: once is enough.
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
    importlib.metadata.entry_points(group="jax_plugins")
    gc.freeze()  # a collection in a fork would copy all of what has been imported
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _become(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(argv: list[str], environment: dict[str, str], to: str) -> None:
    """Turns this process into a command that writes what it prints to files."""
    code = 70
    for number in (1, 2):
        file = os.open(f"{to}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.environ |= environment
    sys.argv = argv
    try:
        if argv[0].endswith(".py"):
            runpy.run_path(argv[0], run_name="__main__")
        else:
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
