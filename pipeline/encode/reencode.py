"""The sharpest check of a store: encode some of its cells once more and compare."""

import numpy as np
import torch

from pipeline.encode.cells import CellEncoder
from pipeline.errors import UsageError
from pipeline.samples import decode_sample
from pipeline.store import LatentStore
from pipeline.store.verify import Fault
from pipeline.telling import Progress
from pipeline.tokenizer import Tokenizer

# Root mean square difference, as a share of the latents' own, that another device, number of
# threads or batch size may make; half precision rounds at every layer.
TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 8e-2}


def reencode(
    store: LatentStore,
    tokenizer: Tokenizer,
    count: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[int, list[Fault]]:
    """Encode `count` cells, drawn by seed among those present, and compare with what is stored.

    Masks must be equal, latents within TOLERANCE.

    returns  how many were encoded, and a fault for each array of a cell that differs
    raises   InputError when an image is gone or no longer what was ingested; UsageError when there
             is no cell to compare
    """
    present = np.argwhere(store.present())
    if not len(present):
        raise UsageError(f"{store.url} has no cell yet", "run gms-lmm encode first")
    order = np.random.default_rng(seed).permutation(len(present))[:count]
    precision = store.attributes["preprocessing"]["precision"]
    encoder = CellEncoder(tokenizer, precision, batch_size=1)
    source = store.source()
    faults = []
    for done, (view, row) in enumerate(present[np.sort(order)].tolist()):
        block = row // store.shard_samples
        place = row - store.rows_of(block).start
        image, mask = decode_sample(source, store.samples.row(row, named=True), store.size)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        cells, _ = encoder(pixels, torch.from_numpy(mask)[None], store.plan(view, block)[[place]])
        for name, values in cells.items():
            stored = store.read_shard(name, view, block)[place]
            difference = _difference(values[0], stored)
            if difference > (0 if name == "mask" else TOLERANCE[precision]):
                what = f"{name} of view {view} differs by {100 * difference:.3g} % when encoded"
                faults.append(Fault("other when encoded", what, name, view, (row,)))
        if progress:
            progress(done + 1, len(order))
    return len(order), faults


def _difference(found: np.ndarray, stored: np.ndarray) -> float:
    """Root mean square of the difference, as a share of that of what is stored."""
    a, b = found.astype(np.float64), stored.astype(np.float64)
    scale = np.sqrt(np.square(b).mean()) or 1.0
    return float(np.sqrt(np.square(a - b).mean()) / scale)
