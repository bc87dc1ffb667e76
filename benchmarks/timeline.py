"""Runs a command of this repository, and writes where its time went.

    python -X importtime -m benchmarks.timeline timeline.json train.py --config=configs/tiny.py

Of two parts at once, the inner one counts: what is compiled while parameters are created counts as
compiled. benchmarks/startup.py runs this, also on other checkouts; so it needs nothing of them.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import sys
import time

# The parts of a command that JAX tells of, and functions that are parts; the innermost first.
EVENTS = {
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/jaxpr_trace_duration": "trace",
}
FUNCTIONS = {
    "mmrec_jax.data.dataset:load_dataset": "data",
    "mmrec_jax.learning.step:init_train_state": "init",
    "mmrec_jax.runs.workdir:Run.params": "checkpoint",
}
PARTS = (*EVENTS.values(), *FUNCTIONS.values())


def main() -> None:
    begin = time.time()
    path, script, *arguments = sys.argv[1:]
    spans = []
    atexit.register(lambda: _write(path, begin, spans))
    sys.path.insert(0, os.getcwd())
    sys.argv = [script, *arguments]
    sys.meta_path.insert(0, _WhenImported(spans))
    runpy.run_path(script, run_name="__main__")


class _WhenImported:
    """Begins to measure the parts of a module as soon as it is imported."""

    def __init__(self, spans: list):
        self.spans = spans

    def find_spec(self, name, path=None, target=None):
        functions = [x for x in FUNCTIONS if x.split(":")[0] == name]
        if name != "jax" and not functions:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if name == "jax":
                module.monitoring.register_event_duration_secs_listener(self.event)
            for function in functions:
                self.measure(module, function)

        spec.loader.exec_module = exec_module
        return spec

    def event(self, name: str, duration: float, **_) -> None:
        if name in EVENTS:
            now = time.time()
            self.spans.append((EVENTS[name], now - duration, now))

    def measure(self, module, function: str) -> None:
        *owners, name = function.split(":")[1].split(".")
        owner = functools.reduce(getattr, owners, module)
        original = getattr(owner, name)

        @functools.wraps(original)
        def measured(*args, **kwargs):
            start = time.time()
            try:
                return original(*args, **kwargs)
            finally:
                self.spans.append((FUNCTIONS[function], start, time.time()))

        setattr(owner, name, measured)


def _write(path: str, begin: float, spans: list) -> None:
    seconds, taken = {}, []
    for part in PARTS:
        before = _length(taken)
        taken += [(start, end) for name, start, end in spans if name == part]
        seconds[part] = _length(taken) - before
    with open(path, "w") as file:
        json.dump({"begin": begin, "seconds": seconds}, file)


def _length(spans: list[tuple[float, float]]) -> float:
    """Of the union."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    main()
