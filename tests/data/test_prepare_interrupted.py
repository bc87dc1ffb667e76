"""Preparing a corpus that is interrupted, prepared twice at a time, or cannot be written."""

import dataclasses
import json
import os
import pydoc_data.topics
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mmrec_jax.data.prepare import prepare
from mmrec_jax.errors import UserError
from small_runs import ROOT, config, one_error_line

LARGE_TEXT = 9_000_000  # characters: enough for worker processes


def prepare_command(text, **env):
    flags = {
        "data.source": "text",
        "data.path": text,
        "data.tokenizer": "bpe",
        "model.vocab_size": 600,
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mmrec_jax.commands.prepare",
            f"--config={ROOT}/configs/tiny.py",
            *(f"--config.{key}={value}" for key, value in flags.items()),
        ],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def large_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.txt"
    prose = "".join(pydoc_data.topics.topics.values())
    path.write_text(prose * (LARGE_TEXT // len(prose) + 1))
    return path


def wait_for(condition):
    """Waits until a condition holds."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_after_a_kill_or_in_parallel_the_files_equal_those_of_an_undisturbed_run(
    large_text, cache, tmp_path
):
    process = prepare_command(large_text)
    (first,) = wait_for(lambda: list(cache.glob("*.encoded/*.tokens")))[:1]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(cache.glob("*/index.json"))
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))

    written = first.stat()
    both = [prepare_command(large_text) for _ in range(2)]
    keep = os.open(first, os.O_RDONLY)  # what was done is not done again, though it is deleted
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert os.fstat(keep).st_mtime_ns == written.st_mtime_ns
    os.close(keep)
    assert sum("\nprepared " in out for out, _ in outputs) == 1
    assert not list(cache.glob("*.partial")) + list(cache.glob("*.encoded"))
    texts = [re.search(r"([\d.]+) MB encoded here|encoded ([\d.]+) MB here", x) for x, _ in outputs]
    encoded = [float(text[1] or text[2]) for text in texts if text]

    other = prepare_command(large_text, MMREC_CACHE_DIR=str(tmp_path / "other"))
    assert "\nprepared " in other.communicate(timeout=120)[0]
    entries = [next(folder.glob("text-bpe-*/")) for folder in (cache, tmp_path / "other")]
    undisturbed, disturbed = [
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in entries
    ]
    for name in [name for name in undisturbed if name != "index.json"]:
        assert disturbed[name] == undisturbed[name]
    counts = json.loads(undisturbed["index.json"])["splits"]["train"]["counts"]
    assert counts["num_bytes"] >= 0.9 * LARGE_TEXT
    assert 0 < sum(encoded) < large_text.stat().st_size / 1e6 - 3  # without the first stretch


def test_ctrl_c_prints_one_line_and_keeps_what_is_done(large_text, cache):
    process = prepare_command(large_text)
    wait_for(lambda: list(cache.glob("*.encoded/*.tokens")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    line = one_error_line(subprocess.CompletedProcess([], process.returncode, out, err))
    assert (process.returncode, line) == (130, "error: interrupted")
    assert not list(cache.glob("*.partial"))
    assert {path.suffix for path in cache.glob("*.encoded/*")} <= {".json", ".lock", ".tokens"}


# --- what cannot be written ---


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing_behind(large_text, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        process = prepare_command(large_text, MMREC_CACHE_DIR=str(disk))
        out, err = process.communicate(timeout=120)
        line = one_error_line(subprocess.CompletedProcess([], process.returncode, out, err))
        assert "no space left on the disk of the cache" in line
        assert "MMREC_CACHE_DIR" in line
        assert not list(disk.glob("*.partial"))
        assert not list(disk.glob("*/index.json"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def as_nobody():
    """Gives up the rights of root, which may write anywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.fixture
def read_only_cache(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "cache"
        monkeypatch.setenv("MMREC_CACHE_DIR", str(root))
        prepare(config(), lambda _: None)
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        root.chmod(0o555)
        yield root
        root.chmod(0o755)


def test_a_read_only_cache_is_read_and_not_written(read_only_cache, as_nobody):
    said = []
    corpus = prepare(config(), said.append)
    assert (corpus.folder.parent, said) == (read_only_cache, [])
    other = config(data__sample_chars=3000)
    with pytest.raises(UserError, match=r"cache .* cannot be written: Permission denied; .*CACHE"):
        prepare(dataclasses.replace(other))


def test_a_cache_that_cannot_be_created_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMREC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written: Not a directory"):
        prepare(config())
