"""Where the time of short commands goes, with empty caches ("cold") and with full ones ("warm").

    python -m benchmarks.startup
    python -m benchmarks.startup --checkout=../before --rounds=3    # beside another revision
    python -m benchmarks.startup --command=generate --packages

The commands are six steps of tiny, an evaluation, forty tokens of text, and a report; "jax" is a
program of one matrix product, which is the least that any of them could take. In each round, all
checkouts take turns, each with a cache of its own, which is empty at first and full the second
time. The table shows medians in seconds: until Python has started, then imports, then the parts
that benchmarks/timeline.py tells apart, then the rest, of which the steps are a part.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from absl import flags

from benchmarks.timeline import PARTS
from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError
from mmrec_jax.tables import print_table

_MATMUL = (
    "import jax, jax.numpy as jnp; jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.eye(8)))"
)
_SIX_STEPS = ("--config.train.num_steps=6", "--config.train.warmup_steps=2", "--noreport")
COMMANDS = {
    "jax": ("one.py",),
    "train": ("train.py", "--config=configs/tiny.py", *_SIX_STEPS, "--workdir={run}"),
    "eval": ("eval.py", "--workdir={run}"),
    "generate": ("generate.py", "--workdir={run}", "--prompt=The old", "--tokens=40"),
    "report": ("report.py", "--workdir={run}"),
}
_CHECKOUT = flags.DEFINE_multi_string("checkout", [], "Other checkouts to compare with this one.")
_COMMAND = flags.DEFINE_multi_enum("command", list(COMMANDS), list(COMMANDS), "Commands to run.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1)
_PACKAGES = flags.DEFINE_bool("packages", False, "Show the slowest packages to import.")


def main():
    here = Path.cwd()
    checkouts = [here, *(Path(x).resolve() for x in _CHECKOUT.value)]
    for checkout in checkouts:
        if not (checkout / "train.py").exists():
            raise UserError(f"--checkout={checkout} has no train.py")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_ROUNDS.value):
            for index, checkout in enumerate(checkouts):
                of_round = Path(folder, f"{number}_{index}")
                of_round.mkdir()
                for command in COMMANDS:  # train.py makes the run of the others
                    if command not in _COMMAND.value and command != "train":
                        continue
                    for state in ("cold", "warm"):
                        run = _run(checkout, of_round, command, state)
                        found.setdefault((command, state, checkout), []).append(run)
    rows = []
    for command in _COMMAND.value:
        for state in ("cold", "warm"):
            for checkout in checkouts:
                runs = found[command, state, checkout]
                medians = [statistics.median(column) for column in zip(*runs, strict=True)]
                name = checkout.name if len(checkouts) > 1 else ""
                rows.append((command, state, name, *(f"{x:.2f}" for x in medians)))
    names = ("command", "caches", "", "total", "python", "imports", *PARTS, "rest")
    print_table(names, rows, texts=3, wide=True, title="seconds")


def _run(checkout: Path, folder: Path, command: str, state: str) -> tuple[float, ...]:
    """Seconds in total and of each part."""
    script, *arguments = COMMANDS[command]
    if command == "jax":
        (folder / script).write_text(_MATMUL)
        script = str(folder / script)
    # What the others read is the run of the warm train.py.
    run = folder / (f"run_{state}" if command == "train" else "run_warm")
    cache = folder / f"cache_{command}"
    written = folder / "timeline.json"
    written.unlink(missing_ok=True)
    timeline = Path(__file__).with_name("timeline.py")
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", timeline, written, script]
        + [argument.format(run=run) for argument in arguments],
        cwd=checkout,
        env=os.environ | {"MMREC_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    total = time.time() - begin
    if done.returncode:
        raise UserError(f"{command} of {checkout} failed: {done.stderr.strip().splitlines()[-1]}")
    packages = _packages(done.stderr)
    if _PACKAGES.value and state == "cold":
        slowest = ", ".join(f"{name} {x:.2f}" for name, x in packages.most_common(8))
        print(f"{command} imports: {slowest}")
    timeline = json.loads(written.read_text())
    parts = [timeline["seconds"][part] for part in PARTS]
    python, imports = timeline["begin"] - begin, packages.total()
    return total, python, imports, *parts, total - python - imports - sum(parts)


def _packages(log: str) -> Counter:
    """Seconds that the modules of each package took to import, without what they imported."""
    packages = Counter()
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)$", log, re.MULTILINE):
        packages[name.split(".")[0]] += int(own) / 1e6
    return packages


if __name__ == "__main__":
    cli.run(main)
