"""What the C library does with memory that a tensor has freed: it keeps it for the next."""

import ctypes

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Have this process keep freed memory for what it allocates next, not hand it back.

    glibc maps every block of some MB anew and returns it when it is freed. A convolution's result
    is such a block, so that the system clears each page of it once more in each layer: half of the
    time that a CPU takes for a small tokenizer. What a process has used at its most it now keeps to
    its end.

    returns  whether there is such a choice; musl, macOS and Windows have none
    source   mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
