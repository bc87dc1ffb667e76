"""Writes the numbers of a run: metrics.jsonl and TensorBoard files."""

import mmap
import os
import shutil
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard files."""

    def __init__(self, workdir: Path, resume_step: int):
        """Opens both, and drops what is of steps after `resume_step` (-1 drops all)."""
        path = workdir / "metrics.jsonl"
        if path.exists():
            _drop_after(path, resume_step)
        self._file = path.open("a", buffering=1)  # a report may read it during the run
        # EventsWriter rather than SummaryWriter: a full disk kills the thread of the latter, and
        # closing it then waits forever.
        events = workdir / "tensorboard"
        if resume_step < 0:
            shutil.rmtree(events, ignore_errors=True)
        events.mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(events / "events"), filename_suffix=f".{os.getpid()}")
        if resume_step > 0:  # TensorBoard drops what an earlier process wrote from this step on
            start = SessionLog(status=SessionLog.START)
            self._event(resume_step + 1, session_log=start)

    def _event(self, step: int, **content: Any) -> None:
        self._tensorboard.write_event(Event(wall_time=time.time(), step=step, **content))

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Writes a line, and unless it is an event, a scalar `kind/name` for each number in it."""
        self._file.write(checksums.sealed({"kind": kind, "step": step, **values}))
        scalars = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and kind != "event"
        ]
        if scalars:
            self._event(step, summary=Summary(value=scalars))

    def flush(self) -> None:
        self._file.flush()
        self._tensorboard.flush()

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


class NoMetrics:
    """Takes the place of a `MetricsWriter` in processes that do not write."""

    def write(self, kind: str, step: int, **values: Any) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _drop_after(path: Path, last_step: int) -> None:
    """Cuts off what was logged after a step; of what was logged before, it reads only one line."""
    with path.open("r+b") as file:
        if not (end := os.fstat(file.fileno()).st_size):
            return  # it cannot be mapped
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as log:
            while end:
                start = log.rfind(b"\n", 0, end - 1) + 1
                if _is_kept(log[start:end], last_step):  # and so are all before, which are in order
                    break
                end = start
        file.truncate(end)


def _is_kept(line: bytes, last_step: int) -> bool:
    try:  # a kill may have cut the line off
        return line.endswith(b"\n") and checksums.unsealed(line.decode())["step"] <= last_step
    except (Damaged, UnicodeDecodeError, KeyError, TypeError):
        return False
