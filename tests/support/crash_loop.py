"""Kill an encode again and again at random moments until it finishes; a helper of test_crash.

A process that has everything imported, and has run nothing of it, forks one child an attempt: a
kill costs no imports, and no thread is lost in the fork. Prints
JSON: kills, stores finished and cells put through the tokenizer in all.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import diffusers.models.autoencoders.autoencoder_kl  # noqa: F401  else each child imports it
import torch

import pipeline.store.create
from pipeline.encode import encode
from pipeline.manifest import read_manifest
from pipeline.tokenizer import load_tokenizer

VIEWS, SIZE_PX, SHARD_SAMPLES = 2, 64, 4


def attempt(manifest: str, url: str, tokenizer: str, counter: mmap.mmap) -> int:
    """Fork a child that encodes; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        samples, loaded = read_manifest(Path(manifest)), load_tokenizer(tokenizer)
        encode_pixels = loaded.encode

        def count(pixels: torch.Tensor, precision: str) -> Any:
            """Counted on the way in: a cell that was in hand when the kill came counts too."""
            cells = len(pixels) // 2  # an image and a mask each
            counter[:8] = struct.pack("q", struct.unpack("q", counter[:8])[0] + cells)
            return encode_pixels(pixels, precision)

        loaded.encode = count  # type: ignore[method-assign]
        encode(samples, url, loaded, views=VIEWS, size=SIZE_PX)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def main(manifest: str, tokenizer: str, folder: str, kills: int, seed: int) -> None:
    pipeline.store.create.SHARD_SAMPLES = SHARD_SAMPLES
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
