"""Keeps the programs that JAX compiles, for later commands.

They lie in the folder `compiled` of the cache (~/.cache/mmrec_jax, or $MMREC_CACHE_DIR). XLA
compiles for the processor at hand, so each kind of machine and each version of JAX has a folder of
its own. MMREC_COMPILE_CACHE=0 turns this off; JAX_COMPILATION_CACHE_DIR has JAX keep them itself.

JAX's own files are trusted as they are, and what a killed process left stays broken. Here a file
ends with a checksum, appears complete or not at all, and is deleted when it is broken; the oldest
go when there are too many.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from mmrec_jax.files import cache_root

LARGEST = 2**31  # bytes of all programs
SUFFIX = ".program"


def keep_compiled() -> None:
    """From now on, JAX looks for programs in the cache before it compiles them."""
    if os.environ.get("MMREC_COMPILE_CACHE") == "0" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    try:  # there is no public way to say how files are written
        from jax._src import compilation_cache
    except ImportError:
        return
    folder = cache_root() / "compiled"
    try:
        own = folder / _kind_of_machine(jax.__version__)
        own.mkdir(parents=True, exist_ok=True)
        forget_oldest(folder, LARGEST)
    except OSError:
        return
    compilation_cache.get_file_cache = lambda path: (Programs(Path(path)), path)
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA's own caches have no checksums, and their path is a part of every program's key: programs
    # would be lost when the cache is moved.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


class Programs:
    """Files by key, as JAX's `CacheInterface` has them."""

    def __init__(self, folder: Path):
        self._path = folder

    def get(self, key: str) -> bytes | None:
        """What was put there; None if there is nothing, or if it is broken."""
        path = self._path / f"{key}{SUFFIX}"
        try:
            program = _program(path.read_bytes())
            if program is None:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)  # the oldest are those that have not been used for the longest time
        except OSError:
            return None
        return program

    def put(self, key: str, program: bytes) -> None:
        """Writes a file, if the disk allows it."""
        path = self._path / f"{key}{SUFFIX}"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(program + hashlib.sha256(program).digest())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)


def is_intact(path: Path) -> bool:
    """Whether a program matches its checksum."""
    return _program(path.read_bytes()) is not None


def _program(data: bytes) -> bytes | None:
    program, checksum = data[:-32], data[-32:]
    return program if hashlib.sha256(program).digest() == checksum else None


def forget_oldest(folder: Path, largest: int) -> None:
    """Deletes the files that were not used for the longest time, down to so many bytes in total."""
    files = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):  # another process may have renamed or deleted it
            if path.is_file():
                files.append((path, path.stat()))
    total = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda x: x[1].st_mtime):
        if total <= largest:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


def _kind_of_machine(jax_version: str) -> str:
    """A name for the version of JAX and what the processor can do."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        pass
    kind = hashlib.sha256(f"{platform.platform()} {processor}".encode()).hexdigest()
    return f"jax-{jax_version}-{kind[:12]}"
