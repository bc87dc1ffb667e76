"""Compiled programs are kept for later commands, and no broken one is ever used."""

import os
import subprocess
import sys

import pytest

from mmrec_jax.commands.compiled_programs import Programs, forget_oldest

PROGRAM = """
import jax, jax.numpy as jnp
from mmrec_jax.commands.compiled_programs import keep_compiled
compiled = []
jax.monitoring.register_event_listener(lambda name, **_: compiled.append(name))
keep_compiled()
x = jax.jit(lambda x: jnp.sin(x @ x) / 3)(jnp.arange(400.0).reshape(20, 20))
print(sum(name.endswith("/cache_misses") for name in compiled), float(x.sum()).hex())
"""


def start(folder, **more) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"MMREC_CACHE_DIR": str(folder), **more}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> tuple[int, str]:
    """How many programs were compiled and put into the cache, and what they computed."""
    output, errors = process.communicate()
    assert process.returncode == 0
    assert not errors
    misses, x = output.split()
    return int(misses), x


def programs(folder):
    return list(folder.glob("compiled/*/*.program"))


def test_processes_share_what_they_compile_and_compile_again_what_is_broken(tmp_path):
    _, expected = result(start(tmp_path, MMREC_COMPILE_CACHE="0"))
    assert not programs(tmp_path)

    first = tmp_path / "first"
    at_once = [start(first) for _ in range(4)]
    assert {result(process)[1] for process in at_once} == {expected}
    assert result(start(first)) == (0, expected)

    moved = first.rename(tmp_path / "moved")
    assert result(start(moved)) == (0, expected)

    kept = programs(moved)
    for path in kept[::2]:
        path.write_bytes(path.read_bytes()[:-50])
    for path in kept[1::2]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    misses, x = result(start(moved))
    assert misses > 0
    assert x == expected
    assert result(start(moved)) == (0, expected)


@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, at):
    kept = Programs(tmp_path)
    kept.put("key", b"a program")
    assert kept.get("key") == b"a program"
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert kept.get("key") is None
    assert not path.exists()
    kept.put("key", b"a program")
    assert kept.get("key") == b"a program"


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
    kept = Programs(tmp_path / "missing")
    kept.put("key", b"a program")
    assert kept.get("key") is None
    assert not list(tmp_path.iterdir())


def test_programs_that_were_not_used_for_the_longest_time_are_forgotten(tmp_path):
    folder = tmp_path / "machine"
    folder.mkdir()
    kept = Programs(folder)
    for age, key in enumerate("abc"):
        kept.put(key, bytes(68))  # 100 bytes with the checksum
        (path,) = folder.glob(f"{key}.*")
        os.utime(path, (1000 - age, 1000 - age))
    kept.get("c")  # the oldest until now
    forget_oldest(tmp_path, 250)
    assert [kept.get(key) is None for key in "abc"] == [False, True, False]
    forget_oldest(tmp_path, 250)
    assert len(list(folder.iterdir())) == 2
