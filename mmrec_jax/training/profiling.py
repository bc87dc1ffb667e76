"""Where the time of a training step goes: JAX's own traces, and what is in them."""

from collections import Counter
from pathlib import Path

import jax

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


class Profiler:
    """Records a few steps of a run, once; none where there is no folder."""

    def __init__(self, folder: Path | None, first_step: int):
        """`first_step`: steps done before this process began."""
        self._folder = folder
        self._begin = first_step + WARM_UP
        self._end = self._begin + STEPS
        self._recording = False

    def before(self, step: int) -> None:
        """To be called before step `step` + 1."""
        if self._folder is not None and step == self._begin:
            jax.profiler.start_trace(str(self._folder))
            self._recording = True

    def after(self, step: int, result) -> list[str]:
        """To be called with what step `step` gives; lines to print when recording has ended."""
        if not self._recording or step < self._end:
            return []
        jax.block_until_ready(result)
        self.close()
        lines = [
            f"trace of {STEPS} steps: {self._folder} (TensorBoard: --logdir={self._folder}; "
            "Perfetto: the .trace.json.gz in it)",
            "ms a step of all threads together (a loop contains its body):",
        ]
        return lines + [
            f"  {milliseconds / STEPS:8.2f}  {name}"
            for name, milliseconds in most_expensive(self._folder, 10)
        ]

    def close(self) -> None:
        """Stops recording where that goes on."""
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
