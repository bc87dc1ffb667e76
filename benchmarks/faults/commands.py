"""The small commands that the storm disturbs, and what each of them leaves behind."""

import hashlib
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
SMALL_MODEL = {
    "model.vocab_size": 64,
    "model.dim": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.chunk_len": 8,
    "model.short_term": 8,
    "model.long_term": 4,
}
SMALL = SMALL_MODEL | {
    "train.batch_size": 2,
    "train.seq_len": 32,
    "train.num_steps": 200,
    "train.warmup_steps": 5,
    "train.checkpoint_every": 20,
    "train.keep_checkpoints": 3,
    "train.log_every": 10,
}
SAMPLE = {"data.sample_chars": 10_000}
LARGER = {"model.dim": 32, "model.num_layers": 2}
RANKS = {"train.batch_size": 4, "mesh.data": -1, "mesh.fsdp": 2, "train.num_steps": 60}
PREPARED = {"data.sample_chars": 500_000, "data.tokenizer": "bpe", "model.vocab_size": 1000}

Results = dict[str, object]  # what must not differ from those of an undisturbed command


class Command(NamedTuple):
    """A command of a case, in whose folder are `cache`, `run`, and `source` if it needs one."""

    processes: Callable[[Path], list[list[str]]]  # arguments of Python; one list for each process
    results: Callable[[Path], Results]
    reads: str = ""  # the command whose undisturbed `run` is its `source`
    may_repeat: bool = True  # whether the command, once it has ended well, may be given again
    environment: Mapping[str, str] = MappingProxyType({})


def _train(knobs: dict, *more: str) -> Callable[[Path], list[list[str]]]:
    def processes(folder: Path) -> list[list[str]]:
        return [["train.py", *train_flags("tiny", SMALL | SAMPLE | knobs, folder), *more]]

    return processes


def train_flags(config: str, knobs: dict, folder: Path) -> list[str]:
    """Flags of train.py for a run in the folder `run` of a folder."""
    return [
        f"--config=configs/{config}.py",
        f"--workdir={folder}/run",
        "--noreport",
        *(f"--config.{name}={value}" for name, value in knobs.items()),
    ]


def _grow(folder: Path) -> list[list[str]]:
    return _train(LARGER, f"--config.init_from={folder}/source")(folder)


def _ladder(folder: Path) -> list[list[str]]:
    knobs = {"rungs": "('tiny', 'mini')", **SAMPLE}
    for rung, own in (("tiny", {}), ("mini", {"model.dim": 32, "train.learning_rate": 1e-3})):
        of_rung = SMALL | {"train.num_steps": 60} | own
        knobs |= {f"{rung}.{name}": value for name, value in of_rung.items()}
    return [["train.py", *train_flags("ladder", knobs, folder)]]


def _two_processes(folder: Path) -> list[list[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    meet = (f"--coordinator={address}", "--num_processes=2", "--connect_timeout=60")
    return [_train(RANKS, *meet, f"--process_id={index}")(folder)[0] for index in range(2)]


def _prepare(folder: Path) -> list[list[str]]:
    knobs = [f"--config.{name}={value}" for name, value in PREPARED.items()]
    return [["-m", "mmrec_jax.commands.prepare", "--config=configs/tiny.py", *knobs]]


def _write_text(folder: Path) -> list[list[str]]:
    flags = ("--prompt=It was", "--tokens=200", f"--session={folder}/run/session")
    return [["generate.py", f"--workdir={folder}/source", *flags]]


def _report(folder: Path) -> list[list[str]]:
    return [["report.py", f"--workdir={folder}/source"]]


# --- what they leave behind ---


def run_results(run: Path) -> Results:
    """The parameters of the last checkpoint, and the losses in the log, of a finished run."""
    import jax
    import numpy as np

    from mmrec_jax.runs.metrics import read_metrics
    from mmrec_jax.runs.workdir import open_run

    opened = open_run(run)
    found: Results = {}
    for name in ("final", "best"):
        digest = hashlib.sha256()
        step = opened.checkpoints.resolve(name)
        for array in jax.tree.leaves(opened.params(step)):
            digest.update(np.asarray(array).tobytes())
        found[name] = f"{step} {digest.hexdigest()}"
    opened.checkpoints.close()
    for kind, name in (("train", "loss"), ("evaluation", "loss"), ("epoch", "mean")):
        for line in read_metrics(run, kind):
            found[f"{kind} {line['step']}"] = line[name]
    return found


def _of_run(folder: Path) -> Results:
    return run_results(folder / "run")


def _of_ladder(folder: Path) -> Results:
    found = {}
    for rung in ("tiny", "mini"):
        found |= {f"{rung} {key}": x for key, x in run_results(folder / "run" / rung).items()}
    return found | {"table": (folder / "run/ladder.json").read_text()}


def _of_cache(folder: Path) -> Results:
    from mmrec_jax.data.token_cache import open_prepared

    (index,) = folder.glob("cache/*/index.json")
    prepared = open_prepared(index.parent, check=True)
    return {name: split.digest for name, split in prepared.splits.items()}


def _of_session(folder: Path) -> Results:
    return {"session": hashlib.sha256((folder / "run/session").read_bytes()).hexdigest()}


def _of_report(folder: Path) -> Results:
    page = (folder / "source/report.html").read_text().replace(str(folder), "")
    pictures = {x.name: x.read_bytes() for x in (folder / "source/report").iterdir()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in pictures.items()} | {
        "page": re.sub(r"\d+ \w+ \d{4}, \d\d:\d\d", "", page)
    }


COMMANDS = {
    "windows": Command(_train({}), _of_run),
    "carried memory": Command(_train({"train.carry_memory": True}), _of_run),
    "growth": Command(_grow, _of_run, reads="windows"),
    "ladder": Command(_ladder, _of_ladder),
    "two processes": Command(_two_processes, _of_run, environment={"JAX_NUM_CPU_DEVICES": "2"}),
    "preparation": Command(_prepare, _of_cache),
    "session": Command(_write_text, _of_session, reads="windows", may_repeat=False),
    "report": Command(_report, _of_report, reads="windows"),
}
