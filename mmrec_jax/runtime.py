"""Settings of the process that make JAX faster on a CPU."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of giving it back to the kernel.

    XLA allocates the temporaries of every step anew. Returned and mapped again, each page of them
    costs a fault a step (benchmarks/train_step.py counts them; the environment variable
    MMREC_GIVE_MEMORY_BACK=1 leaves the allocator alone). Nothing happens with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8
    mallopt(arena_max, 1)
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)
