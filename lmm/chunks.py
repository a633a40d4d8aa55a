"""A function over the rows of a tensor, some at a time, in batches of one shape."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def images_at_a_time(device: torch.device) -> int:
    """How many images suit a device: a GPU wants many, a CPU is fastest with what fits its cache.

    A decoder's activations at full resolution are the largest thing in evaluation and prediction.
    """
    return {"cuda": 64, "cpu": 2}.get(device.type, 8)


def in_batches(function: Callable[[Tensor], Tensor], rows: Tensor, count: int) -> Iterator[Tensor]:
    """The function's results for some rows at a time, each computed in a batch of `count` rows.

    Kernels sum in another order in a batch of another size, and the last bits of a row then depend
    on how many came with it. The last batch is therefore filled up, with its last row again, and
    the result cut.

    function  (count, …) → (count, …), a row of the result from each row
    rows      (n, …)
    """
    for batch in rows.split(count):
        missing = batch[-1:].expand(count - len(batch), *batch.shape[1:])
        yield function(torch.cat([batch, missing]))[: len(batch)]
