"""Batches of one shape: what comes with a row is not to be seen in its result."""

import pytest
import torch

from lmm.chunks import in_batches


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (4, [4]), (7, [4, 3]), (8, [4, 4])])
def test_every_batch_has_one_shape_and_the_results_are_those_of_the_rows(
    n: int, sizes: list[int]
) -> None:
    rows = torch.arange(n * 6.0).view(n, 2, 3)
    shapes = []

    def sums(batch: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(batch.shape))
        return batch.sum(dim=(1, 2))

    found = list(in_batches(sums, rows, 4))
    assert shapes == [(4, 2, 3)] * len(sizes)
    assert [len(part) for part in found] == sizes
    assert torch.equal(torch.cat(found), rows.sum(dim=(1, 2)))
