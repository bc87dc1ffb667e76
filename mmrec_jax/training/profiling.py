"""Where the time of a training step goes: JAX's own traces, and what is in them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

from mmrec_jax.training.hooks import Moment

WARM_UP, STEPS = 5, 5  # steps before recording, and recorded


def most_expensive(folder: Path, count: int) -> list[tuple[str, float]]:
    """The operations that took most time in the last trace under a folder.

    Args:
        folder: what `jax.profiler.start_trace` was given.
        count: how many.

    Returns:
        Names without their numbers, and milliseconds of all threads together. A loop contains its
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
    """A hook (hooks.py) that records a few steps of a run, once, and says where the time went."""

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
        self._say("milliseconds per step, summed over all threads (a loop contains its body):")
        for name, milliseconds in most_expensive(self._folder, 10):
            self._say(f"  {milliseconds / STEPS:8.2f}  {name}")

    def close(self) -> None:
        """Stops recording where that goes on."""
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
