"""Kill an encode again and again at random moments until it finishes; a helper of test_crash.

A process that has everything imported, and has run nothing of it, forks one child an attempt: a
kill costs no imports, and no thread is lost in the fork. Prints
JSON: kills, stores finished and cells encoded in all.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import pipeline.create
from pipeline.encode import encode
from pipeline.manifest import read_manifest
from pipeline.tokenizer import load_tokenizer

VIEWS, SIZE_PX, SHARD_SAMPLES = 2, 64, 8


def attempt(manifest: str, url: str, tokenizer: str, counter: mmap.mmap) -> int:
    """Fork a child that encodes; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    before = 0

    def count(done: int, _total: int) -> None:
        nonlocal before
        total = struct.unpack("q", counter[:8])[0] + done - before
        counter[:8] = struct.pack("q", total)
        before = done

    status = 1
    try:
        samples, loaded = read_manifest(Path(manifest)), load_tokenizer(tokenizer)
        encode(samples, url, loaded, views=VIEWS, size=SIZE_PX, progress=count)
        status = 0
    finally:
        os._exit(status)


def main(manifest: str, tokenizer: str, folder: str, kills: int, seed: int) -> None:
    pipeline.create.SHARD_SAMPLES = SHARD_SAMPLES
    rng = random.Random(seed)
    counter = mmap.mmap(-1, 8)
    killed, stores, duration = 0, 0, None  # the first attempt is left alone, and timed
    while killed < kills:
        url = str(Path(folder) / f"{stores}.zarr")
        pid, started = attempt(manifest, url, tokenizer, counter), time.monotonic()
        if duration is not None:
            time.sleep(rng.uniform(0, duration))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit("an attempt failed")
        else:
            duration = duration or time.monotonic() - started
            stores += 1
    os.waitpid(attempt(manifest, url, tokenizer, counter), 0)
    stores += 1
    encoded = struct.unpack("q", counter[:8])[0]
    result = {"kills": killed, "stores": stores, "encoded": encoded}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))
