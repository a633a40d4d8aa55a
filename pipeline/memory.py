"""What the C library does with memory that a tensor has freed: it keeps it for the next."""

import ctypes

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Have this process keep freed memory for what it allocates next, not hand it back.

    glibc maps every block of some MB anew and returns it when it is freed. A convolution's result
    is such a block, so that the system clears each page of it once more in each layer: a third of
    the time that a CPU takes for a small tokenizer. What a process has used at its most it now
    keeps to its end. Threads begun from now on share one heap, since each one's own could not hold
    more than 64 MB.

    returns  whether there is such a choice; musl, macOS and Windows have none
    source   mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = {_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}
    return all(mallopt(parameter, value) for parameter, value in wanted.items())
