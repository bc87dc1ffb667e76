"""Process settings that make JAX faster on a CPU."""

import ctypes
import os
import sys

HUGE_PAGE = 2**21
HEAP_CHUNK, HEAP_CHUNKS = 2**29, 3  # under 2 GiB in total, so that the freed heap is kept (below)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, in huge pages, instead of returning it to the kernel.

    XLA allocates its temporaries again in every step. If they were returned to the kernel in
    between, each of their pages would cost one page fault per step (benchmarks/train_step.py counts
    them; the environment variable MMREC_GIVE_MEMORY_BACK=1 leaves the allocator unchanged). For
    that, all threads have to share one heap, so the compiler's threads wait for each other. This
    does nothing with other C libraries.
    """
    if os.environ.get("MMREC_GIVE_MEMORY_BACK") or not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8
    mallopt(arena_max, 1)
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)
    _use_huge_pages(libc)


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Asks the kernel for huge pages where the heap is going to grow, before any is touched."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madv_hugepage = 14
    chunks = [libc.malloc(HEAP_CHUNK) for _ in range(HEAP_CHUNKS)]
    for chunk in filter(None, chunks):
        first = -(-chunk // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(first, chunk + HEAP_CHUNK - first, madv_hugepage)
    for chunk in chunks:
        libc.free(chunk)
