"""Whether freed memory is kept: counted by the pages that the system has to give."""

import platform
import subprocess
import sys

import pytest

ROUNDS = 20
BLOCKS = 5
BLOCK_BYTES = 16 * 2**20

# Each round makes blocks of 16 MB, writes to all of their pages and frees them.
PROGRAM = f"""
import resource
import sys
import threading
import numpy as np
from pipeline.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def one_round():
    blocks = [np.empty({BLOCK_BYTES}, np.uint8) for _ in range({BLOCKS})]
    for block in blocks:
        block[:] = 1
def work():
    one_round()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        one_round()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[2] == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


def pages_given(how: str, thread: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how, thread]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("thread", ["main", "another"])
def test_freed_memory_is_used_again_without_asking_the_system(thread: str) -> None:
    # A block is 4,096 pages, or 8 huge ones; of one that is kept the system gives none.
    assert pages_given("kept", thread) < ROUNDS * BLOCKS
    assert pages_given("as it is", thread) >= ROUNDS * BLOCKS * 8
