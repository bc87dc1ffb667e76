"""Measures the tokenizing of a large text: alone, by two processes, and after a kill.

    python -m benchmarks.prepare                                      # 500 MB, BPE, V 10,000

Makes JSON lines and prepares them three times, each in a cache of its own: with one command; with
two commands at once, which share the work; and with one that is killed when 60% is encoded and then
started again. The files must be the same. Memory is the total of all processes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from absl import flags

from mmrec_jax.commands import cli
from mmrec_jax.tables import print_table

_FOLDER = flags.DEFINE_string("folder", "runs/prepare_benchmark", "Folder of text and tokens.")
_MEGABYTES = flags.DEFINE_integer("megabytes", 500, "Size of the text in MB.")
_VOCAB = flags.DEFINE_integer("vocab_size", 10_000, "Token ids, V.")

KILLED_AT = 0.6  # of the tokens
SYLLABLES = (
    "ba", "ke", "lo", "mi", "nu", "ra", "se", "ti", "vo", "za", "chen", "dor", "fal", "gri", "hum",
    "jas", "kol", "pren", "stu", "wex", "ş", "ör",
)  # fmt: skip


def make_text(path: Path, megabytes: int) -> None:
    """Writes documents with sentences of 200,000 different made-up words.

    Word n has frequency ~ 1 / n.
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, 200_000)
    words = np.array(["".join(rng.choice(SYLLABLES, count)) for count in counts])
    chances = 1 / np.arange(1, len(words) + 1)
    chances /= chances.sum()
    with path.open("w") as file:
        while file.tell() < megabytes * 1_000_000:
            drawn = rng.choice(words, 100_000, p=chances)
            cuts = np.sort(rng.choice(np.arange(1, 100_000), 8_000, False))
            sentences = [" ".join(part).capitalize() + "." for part in np.split(drawn, cuts)]
            for start in range(0, len(sentences), 40):
                text = "\n".join(sentences[start : start + 40])
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def start(text: Path, cache: Path) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "mmrec_jax.commands.prepare", "--config=configs/tiny.py"),
        *("--config.data.source=jsonl", f"--config.data.path={text}"),
        *("--config.data.tokenizer=bpe", f"--config.model.vocab_size={_VOCAB.value}"),
    ]
    environment = {**os.environ, "MMREC_CACHE_DIR": str(cache)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def watch(processes: list[subprocess.Popen]) -> tuple[float, int, list[str]]:
    """Seconds until all have ended, their peak memory in bytes, and what they printed."""
    begin, peak = time.perf_counter(), 0
    while any(process.poll() is None for process in processes):
        peak = max(peak, sum(map(memory, processes)))
        time.sleep(0.05)
    assert not any(process.returncode for process in processes)
    return time.perf_counter() - begin, peak, [process.stdout.read() for process in processes]


def memory(process: subprocess.Popen) -> int:
    """Current memory of a process and its children, in bytes."""
    try:
        parent = psutil.Process(process.pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def tokens_of(cache: Path) -> dict[str, bytes]:
    """The contents of all files made, except the index, which contains times."""
    (folder,) = (path.parent for path in cache.glob("*/index.json"))
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "index.json"}


def encoded_megabytes(output: str, total: float) -> float:
    """How much of the text a command has encoded, by what it printed."""
    here = re.search(r"([\d.]+) MB encoded here|encoded ([\d.]+) MB here", output)
    return float(here[1] or here[2]) if here else total


def main():
    folder = Path(_FOLDER.value).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = folder / "text.jsonl"
    make_text(text, _MEGABYTES.value)
    print(f"made {text.stat().st_size / 1e6:.1f} MB of JSON lines", flush=True)
    rows = []

    def measure(name: str, cache: Path, commands: int) -> None:
        seconds, peak, outputs = watch([start(text, cache) for _ in range(commands)])
        total = float(re.search(r"tokens from ([\d.,]+) MB", "".join(outputs))[1].replace(",", ""))
        here = [encoded_megabytes(output, total) for output in outputs]
        same = tokens_of(cache) == tokens_of(folder / "one")
        shares = ", ".join(f"{megabytes / total:.0%}" for megabytes in here)
        rows.append((name, f"{seconds:.1f}", f"{peak / 1e9:.2f}", shares, "yes" if same else "NO"))

    measure("one command", folder / "one", 1)
    measure("two at once", folder / "two", 2)
    whole = sum(map(len, tokens_of(folder / "one").values()))
    killed = folder / "killed"
    process = start(text, killed)
    while sum(p.stat().st_size for p in killed.glob("*.encoded/*.tokens")) < KILLED_AT * whole:
        time.sleep(0.05)
    process.kill()
    process.wait()
    measure(f"after a kill at {KILLED_AT:.0%}", killed, 1)
    names = ("", "seconds", "peak memory (GB)", "encoded by each command", "same files")
    print_table(names, rows)
    shutil.rmtree(folder)


if __name__ == "__main__":
    cli.run(main)
