"""What happens to a command at a random moment."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.commands import ROOT
from mmrec_jax.errors import UserError

TOO_LONG = 120  # seconds
HUNG = 1000  # instead of the exit code of a process that took longer


class Process:
    """A process of a command, whose output goes to files, so that it never waits for a reader."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]):
        """Starts it with these arguments of Python; `folder`, of the case, has its cache."""
        output = folder.with_suffix(".output")  # not where the disk fails
        output.mkdir(exist_ok=True)
        number = len(list(output.glob("*.out")))
        self._out, self._errors = output / f"{number}.out", output / f"{number}.errors"
        with self._out.open("w") as out, self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {"MMREC_CACHE_DIR": str(folder / "cache")} | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def members(self) -> list[int]:
        """Process ids: its own, and that of the process that it supervises."""
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:  # it is over
            return []
        return [pid, *map(int, children)]

    def wait(self, end: float) -> tuple[int, str, str]:
        """Its exit code, output and errors; it is killed if it is not over at a time."""
        try:
            code = self._process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = HUNG
        return code, *(x.read_text(errors="replace") for x in (self._out, self._errors))


class Running(NamedTuple):
    """A command that runs in the folder of a case."""

    folder: Path
    processes: list[Process]
    again: Callable[[], list[Process]]  # starts the same command once more

    @property
    def is_over(self) -> bool:
        return all(process.is_over for process in self.processes)

    def disk(self, kind: str) -> None:
        """Tells failing_disk.c what happens from now on."""
        with (self.folder / "control").open("r+b") as file:  # never empty, because it is mapped
            file.write(kind.encode() or b"\0")

    def signal(self, rng: random.Random, number: int) -> int | None:
        """Sends a signal to one process, and returns which; none if they are over."""
        members = [pid for process in self.processes for pid in process.members()]
        for pid in rng.sample(members, len(members)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
            return pid
        return None

    def kill(self) -> None:
        for process in self.processes:
            for pid in process.members():
                os.kill(pid, signal.SIGKILL)
            process.wait(time.monotonic() + TOO_LONG)


def failing_disk(folder: Path) -> Path:
    """Compiles failing_disk.c.

    Raises:
        UserError: there is no C compiler, or this is not Linux.
    """
    library, source = folder / "failing_disk.so", Path(__file__).with_name("failing_disk.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{source} cannot be compiled, which needs Linux and cc") from error
    return library


# --- the faults: each strikes once, and may return the name of a file that it has changed ---


def _signal(number: int) -> Callable[[random.Random, Running], None]:
    def strike(rng: random.Random, running: Running) -> None:
        running.signal(rng, number)

    return strike


def _disk(kind: str) -> Callable[[random.Random, Running], None]:
    return lambda _, running: running.disk(kind)


def _pause(rng: random.Random, running: Running) -> None:
    pid = running.signal(rng, signal.SIGSTOP)
    time.sleep(rng.uniform(0.1, 3))
    if pid is not None:
        os.kill(pid, signal.SIGCONT)


def _memory(rng: random.Random, running: Running) -> None:
    """Leaves little more memory than is in use."""
    more = rng.choice((0, 10**6, 10**7, 10**8))
    for pid in (pid for process in running.processes for pid in process.members()):
        try:
            used = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
            limit = used * resource.getpagesize() + more
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        except (OSError, IndexError):  # it has just ended
            continue


def _changed(change: Callable[[random.Random, bytearray], None]) -> Callable:
    """A fault that kills the command, and changes a file that it leaves."""

    def strike(rng: random.Random, running: Running) -> str:
        running.kill()
        parts = [running.folder / name for name in ("run", "source", "cache")]
        files = [path for part in parts for path in part.rglob("*") if path.is_file()]
        if not (files := sorted(path for path in files if path.stat().st_size)):
            return ""
        # Compiled programs are most of the files.
        folder = rng.choice(sorted({path.parent for path in files}))
        path = rng.choice([path for path in files if path.parent == folder])
        data = bytearray(path.read_bytes())
        change(rng, data)
        path.unlink()  # it may be a hard link
        path.write_bytes(data)
        return str(path.relative_to(running.folder))

    return strike


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _twice(_, running: Running) -> None:
    running.processes.extend(running.again())


def _no_cache(_, running: Running) -> None:
    shutil.rmtree(running.folder / "cache", ignore_errors=True)


class Fault(NamedTuple):
    """A fault, and how a command that it hits may end: otherwise as if nothing had happened."""

    strike: Callable[[random.Random, Running], str | None]
    with_a_line: bool = True  # on standard error, and exit code 1, or that of the signal
    with_a_crash: bool = False  # in any way
    of_several: bool = False  # with a line, if it has several processes
    may_hang: bool = False  # so that it has to be killed


FAULTS = {
    "SIGKILL": Fault(_signal(signal.SIGKILL), with_a_crash=True),
    "SIGTERM": Fault(_signal(signal.SIGTERM)),
    "SIGINT": Fault(_signal(signal.SIGINT)),
    "SIGSTOP, SIGCONT": Fault(_pause, with_a_line=False),
    "disk full": Fault(_disk("f")),
    "I/O errors": Fault(_disk("e")),
    "short reads and writes": Fault(_disk("s"), with_a_line=False),
    "killed, a bit flipped": Fault(_changed(_flip), with_a_crash=True),
    "killed, a file truncated": Fault(_changed(_truncate), with_a_crash=True),
    # Threads of libraries that cannot be started are waited for forever.
    "no more memory": Fault(_memory, with_a_crash=True, may_hang=True),
    # Processes tell by the clock whether the others are alive.
    "clock set back": Fault(_disk("c"), with_a_line=False, of_several=True),
    "the command twice": Fault(_twice),
    "cache deleted": Fault(_no_cache),
}


def strike_after(seconds: float, fault: Fault, rng: random.Random, running: Running) -> str | None:
    """Lets a fault happen at a moment.

    Returns:
        The file that it has changed, or ""; None if the command was over before.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running.is_over:
            return None
        time.sleep(0.01)
    return None if running.is_over else fault.strike(rng, running) or ""
