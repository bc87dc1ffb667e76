"""What runs cases in a process of its own, and watches what readers do."""

import contextlib
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fuzz.damage import damaged
from benchmarks.fuzz.readers import Reader
from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.errors import UserError

LONGEST, MEMORY = 20, 2**31  # seconds per case, and bytes more than before


def work(reader: Reader, folder: Path, first: int, count: int) -> None:
    """Runs cases, and prints the number of each before it and its outcome after it."""
    out = os.fdopen(os.dup(1), "w", buffering=1)  # for nobody but this function
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    files = sorted({x for pattern in reader.files for x in folder.glob(pattern) if x.is_file()})
    for seal in folder.rglob(checksums.OF_FOLDER):
        seal.unlink()
    reader.read(folder)  # imports everything
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    watched = _watch(folder)
    for number in range(first, first + count):
        rng = random.Random(number)
        path = rng.choice([path for path in files if path.exists()])
        whole = path.read_bytes()
        path.unlink()  # it may be a hard link
        path.write_bytes(damaged(rng, whole))
        print(number, file=out)
        signal.alarm(LONGEST)
        watched.clear()
        try:
            with _watching():
                reader.read(folder)
            outcome = "read"
        except (UserError, Damaged) as error:
            outcome = "refused" if "\n" not in str(error) else "refused in several lines"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        if watched:
            outcome = f"opened {watched[0]}"
        path.write_bytes(whole)
        print(json.dumps([path.name, outcome]), file=out)


_is_watching = False


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    global _is_watching
    _is_watching = True
    try:
        yield
    finally:
        _is_watching = False


def _watch(folder: Path) -> list[str]:
    """A list of what a reader does that it should not, from now on."""
    allowed = (str(folder), sys.prefix, sys.base_prefix, str(Path.cwd()), "/proc/", "/sys/")
    found = []

    def hook(event: str, arguments: tuple) -> None:
        if not _is_watching:
            return
        if event in ("open", "os.remove", "os.rename", "os.mkdir"):
            path = arguments[0]
            if isinstance(path, (str, bytes)):
                path = path.decode() if isinstance(path, bytes) else path
                if path.startswith("/") and not path.startswith(allowed):
                    found.append(path)
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "socket.connect"):
            found.append(event)

    sys.addaudithook(hook)
    return found
