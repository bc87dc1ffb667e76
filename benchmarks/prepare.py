"""Measures time and memory of tokenizing a large text, and checks that a kill changes nothing.

    python -m benchmarks.prepare                                      # 200 MB, BPE, V 10,000

Makes the text, prepares it, kills a second preparation halfway, restarts it, and compares the
files. Memory is the total of all processes.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from absl import flags

from mmrec_jax.commands import cli

_FOLDER = flags.DEFINE_string("folder", "runs/prepare_benchmark", "Folder of text and tokens.")
_MEGABYTES = flags.DEFINE_integer("megabytes", 200, "Size of the text in MB.")
_VOCAB = flags.DEFINE_integer("vocab_size", 10_000, "Token ids, V.")

SYLLABLES = (
    "ba", "ke", "lo", "mi", "nu", "ra", "se", "ti", "vo", "za", "chen", "dor", "fal", "gri", "hum",
    "jas", "kol", "pren", "stu", "wex", "ş", "ör",
)  # fmt: skip


def make_text(path: Path, megabytes: int) -> None:
    """Writes sentences of 200,000 different made-up words; word n has frequency ~ 1 / n."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, 200_000)
    words = np.array(["".join(rng.choice(SYLLABLES, count)) for count in counts])
    chances = 1 / np.arange(1, len(words) + 1)
    chances /= chances.sum()
    with path.open("w") as file:
        while file.tell() < megabytes * 1_000_000:
            drawn = rng.choice(words, 100_000, p=chances)
            sentences = np.split(drawn, np.sort(rng.choice(np.arange(1, 100_000), 8_000, False)))
            file.write("".join(" ".join(words).capitalize() + ".\n" for words in sentences))


def start(text: Path, cache: Path) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "mmrec_jax.commands.prepare", "--config=configs/tiny.py"),
        *("--config.data.source=text", f"--config.data.path={text}"),
        *("--config.data.tokenizer=bpe", f"--config.model.vocab_size={_VOCAB.value}"),
    ]
    return subprocess.Popen(command, env={**os.environ, "MMREC_CACHE_DIR": str(cache)})


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


def main():
    folder = Path(_FOLDER.value).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = folder / "text.txt"
    make_text(text, _MEGABYTES.value)
    print(f"made {text.stat().st_size / 1e6:.1f} MB of text", flush=True)

    begin, peak = time.perf_counter(), 0
    process = start(text, folder / "undisturbed")
    while process.poll() is None:
        peak = max(peak, memory(process))
        time.sleep(0.05)
    seconds = time.perf_counter() - begin
    assert process.returncode == 0
    print(f"undisturbed: {seconds:.1f} s from start to end, peak memory {peak / 1e9:.2f} GB")

    half = sum(map(len, tokens_of(folder / "undisturbed").values())) // 2
    disturbed = folder / "disturbed"
    process = start(text, disturbed)
    while sum(path.stat().st_size for path in disturbed.glob("*.partial/*")) < half:
        time.sleep(0.05)
    process.kill()
    process.wait()
    print(f"killed with {half / 1e6:.1f} MB of tokens written; started again:", flush=True)
    assert start(text, disturbed).wait() == 0
    same = tokens_of(disturbed) == tokens_of(folder / "undisturbed")
    print(f"files equal to those of the undisturbed run: {same}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    cli.run(main)
