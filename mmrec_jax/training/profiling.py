"""Traces training steps with JAX's profiler and finds where the time goes."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

from mmrec_jax.training.moment import Moment

WARM_UP, STEPS = 5, 5  # number of steps before the recording, and in it


def most_expensive(folder: Path, count: int) -> list[tuple[str, float]]:
    """The operations that took the most time in the last trace under a folder.

    Args:
        folder: that was given to `jax.profiler.start_trace`.
        count: number of operations.

    Returns:
        Names without their numbers, and milliseconds summed over all threads. A loop includes its
        body.
    """
    trace = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    data = jax.profiler.ProfileData.from_file(str(trace))
    total: Counter[str] = Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats):
                    total[event.name.split(".")[0]] += event.duration_ns
    return [(name, nanoseconds / 1e6) for name, nanoseconds in total.most_common(count)]


class Profile:
    """A hook (hooks.py) that traces a few steps of a run once and prints where the time went."""

    def __init__(self, folder: Path, first_step: int, say: Callable[[str], None]):
        """`first_step`: steps done before this process began; `say`: prints a line."""
        self._folder, self._say = folder, say
        self._begin = first_step + WARM_UP
        self._recording = False

    def __call__(self, moment: Moment) -> None:
        if moment.step == self._begin:
            jax.profiler.start_trace(str(self._folder))
            self._recording = True
        elif self._recording and moment.step == self._begin + STEPS:
            jax.block_until_ready(moment.metrics)
            self.close()
            self._say_where_time_went()

    def _say_where_time_went(self) -> None:
        self._say(
            f"trace of {STEPS} steps: {self._folder} (TensorBoard: --logdir={self._folder}; "
            "Perfetto: the .trace.json.gz in it)"
        )
        self._say("milliseconds per step, summed over all threads (a loop includes its body):")
        for name, milliseconds in most_expensive(self._folder, 10):
            self._say(f"  {milliseconds / STEPS:8.2f}  {name}")

    def close(self) -> None:
        """Stops recording, if it is in progress."""
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
