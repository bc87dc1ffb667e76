"""The processes of a run on several hosts: how they start, find each other, and agree.

A process that runs alone does not notice any of this.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mmrec_jax.errors import UserError

DEAD_AFTER = 30  # seconds without a sign of life
# What launchers tell each process of the number of processes. Of MPI's, only Open MPI before
# version 5 is known to JAX; for the others it asks mpi4py.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_CLUSTERS = ("JOBSET_NAME", "MEGASCALE_COORDINATOR_ADDRESS")
_HOSTS = "TPU_WORKER_HOSTNAMES"  # of a TPU pod, separated by commas
LOST = (
    "another process of this run has ended or cannot be reached; start all of them again with the "
    "same command, and they continue from the last checkpoint"
)
_SUPERVISED = "MMREC_SUPERVISED"  # set in the process that a supervisor has started


class Meeting(NamedTuple):
    """Where processes meet, as the user has given it."""

    coordinator: str | None  # HOST:PORT of process 0; None: JAX finds this and the rest by itself
    count: int | None  # of processes
    index: int | None  # of this one, from 0
    timeout: int  # seconds to wait for the others

    def check(self) -> None:
        """Raises UserError if something is missing."""
        values = {"coordinator": self[0], "num_processes": self[1], "process_id": self[2]}
        missing = [f"--{name}" for name, value in values.items() if value is None]
        if 0 < len(missing) < len(values):
            raise UserError(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; give "
                "--coordinator, --num_processes and --process_id together, or none of them"
            )

    def has_failed(self, reason: str = "") -> str:
        """What the user is told if the processes have not met."""
        where = f" at {self.coordinator}" if self.coordinator else ""
        because = f" ({reason.strip().splitlines()[0]})" if reason.strip() else ""
        return (
            f"the processes of this run have not met{where} within {self.timeout} s{because}; "
            "start one for each --process_id, with the same --coordinator, and make sure that its "
            "address can be reached"
        )

    @property
    def is_expected(self) -> bool:
        """Whether there are other processes, as far as this one can know before it meets them."""
        if self.coordinator is not None or any(name in os.environ for name in _CLUSTERS):
            return True
        return "," in os.environ.get(_HOSTS, "") or self.launched > 1

    @property
    def launched(self) -> int:
        """The number of processes that a launcher has started, if it says so; otherwise 1."""
        return max(int(os.environ.get(name, 1)) for name in _COUNTS)


def supervise(meeting: Meeting, folder: Path) -> None:
    """Runs this command in a process of its own and exits with its exit code.

    JAX aborts a process when another one is lost; somebody has to be left to say so. In the process
    that does the work, this returns. `folder`: for its log (`join`).

    Raises:
        UserError: another process was lost, or did not come.
    """
    if os.environ.get(_SUPERVISED) == str(os.getppid()):
        die_with_parent()
        return
    environment = {**os.environ, _SUPERVISED: str(os.getpid())}
    # A launcher of MPI may have opened a file for the process that does the work.
    worker = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]], env=environment, process_group=0, close_fds=False
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    code = worker.wait()
    has_met = not _log_of_start(folder, worker.pid).exists()
    _log_of_start(folder, worker.pid).unlink(missing_ok=True)
    if code == -signal.SIGABRT:
        raise UserError(LOST if has_met else meeting.has_failed())
    sys.exit(code if code >= 0 else 128 - code)


def die_with_parent() -> None:
    """Makes the kernel kill this process when its parent is gone."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def join(meeting: Meeting, folder: Path) -> None:
    """Connects this process to the others of its run, before JAX is used.

    What libraries print goes to process_N.log in the folder; in all processes but the first, so
    does what Python prints.

    Raises:
        UserError: the processes have not met.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # training/signals.py does its work
    by_hand = meeting.coordinator is not None
    from_mpi = (
        any(name in os.environ for name in _MPI) and "OMPI_MCA_orte_hnp_uri" not in os.environ
    )
    method = "deactivate" if by_hand else "mpi4py" if from_mpi else None
    if method == "mpi4py":
        try:
            from mpi4py import MPI  # noqa: F401
        except ImportError as error:
            raise UserError(
                "to find each other, processes that MPI has launched need the package mpi4py for "
                f"the same MPI ({error}); install it, or give --coordinator, --num_processes and "
                "--process_id to each"
            ) from error
    folder.mkdir(parents=True, exist_ok=True)
    start = _log_of_start(folder, os.getpid())
    _log_libraries(start)
    try:
        with warnings.catch_warnings(action="ignore"):  # of kinds of cluster that this is not
            jax.distributed.initialize(
                *meeting[:3],
                cluster_detection_method=method,
                initialization_timeout=meeting.timeout,
                heartbeat_timeout_seconds=DEAD_AFTER,
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(meeting.has_failed(str(error))) from error
    finally:
        start.unlink()
    if not by_hand and jax.process_count() < meeting.launched:
        raise UserError(
            f"{meeting.launched} processes were launched, and {jax.process_count()} have met; give "
            "--coordinator, --num_processes and --process_id to each"
        )
    log = _log_libraries(folder / f"process_{jax.process_index()}.log")
    if not is_first():
        sys.stdout = sys.stderr = log


def _log_of_start(folder: Path, process: int) -> Path:
    """The log of a process that has not met the others."""
    return folder / f"process_{process}_starts.log"


def _log_libraries(path: Path) -> TextIO:
    """Makes what is not printed by Python go to a file."""
    log = path.open("a", buffering=1)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        stream.flush()
        if stream.fileno() == number:
            setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1))
        os.dup2(log.fileno(), number)
    return log


def leave() -> None:
    """Ends the connection, when all processes have come to their end."""
    import jax

    if are_several():
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that prints and writes for all."""
    import jax

    return jax.process_index() == 0


def are_several() -> bool:
    """Whether there are other processes."""
    import jax

    return jax.process_count() > 1


def run_alone(script: Path, *arguments: str) -> None:
    """Runs a command in a process of its own, which has no others, on CPUs."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    output = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
    print(output, end="")


def tell_all(message: Any) -> list[Any]:
    """What each process says, in the order of their numbers: JSON values."""
    if not are_several():
        return [message]
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(message).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, max(lengths) - len(text))))
    return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths, strict=True)]


class CompiledTogether:
    """A jitted function that all processes compile before any of them runs it.

    CPUs that exchange something for the first time wait for each other for only 30 s.
    """

    def __init__(self, function: Any):
        self._function, self._program = function, None

    def compile(self, *arguments: Any) -> None:
        """Compiles it for such arguments; otherwise the first call does so."""
        self._program = self._function.lower(*arguments).compile()
        tell_all("compiled")

    def __call__(self, *arguments: Any) -> Any:
        if self._program is None:
            self.compile(*arguments)
        return self._program(*arguments)


def together(action: Callable[[], Any]) -> Any:
    """What an action gives in this process, if it succeeds in all of them.

    Raises:
        UserError: it failed in one of them.
    """
    result, problem = None, ""
    try:
        result = action()
    except UserError as error:
        problem = str(error)
    problems = tell_all(problem)
    for index, other in enumerate(problems):
        if other:
            where = "" if problems.count(other) == len(problems) else f"process {index}: "
            raise UserError(where + other)
    return result


def first_alone(action: Callable[[], Any]) -> Any:
    """Process 0 does something while the others wait; None in the others.

    Raises:
        UserError: it failed.
    """
    return together(lambda: action() if is_first() else None)


@contextlib.contextmanager
def losing_one() -> Iterator[None]:
    """Turns the failure of an exchange with other processes into an error for the user.

    Raises:
        UserError: a process has died, or cannot be reached anymore.
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not are_several():
            raise
        raise UserError(LOST) from error
