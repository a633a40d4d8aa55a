"""Whether freed memory is kept: counted by the pages that the system has to give."""

import platform
import subprocess
import sys

import pytest

ROUNDS = 20
BLOCKS = 3
BLOCK_BYTES = 16 * 2**20

# Each round makes three blocks of 16 MB, writes to all of their pages and frees them.
PROGRAM = f"""
import resource
import sys
import numpy as np
if sys.argv[1] == "keep":
    from pipeline.memory import keep_freed_memory
    assert keep_freed_memory()
def one_round():
    blocks = [np.empty({BLOCK_BYTES}, np.uint8) for _ in range({BLOCKS})]
    for block in blocks:
        block[:] = 1
one_round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    one_round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_given(how: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    # A block is 4,096 pages, or 8 huge ones; a block that is kept needs none.
    assert pages_given("keep") < ROUNDS * BLOCKS
    assert pages_given("as it is") >= ROUNDS * BLOCKS * 8
