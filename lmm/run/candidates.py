"""What a run chooses its epoch from: scores of all validations, weights of epochs in play."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from lmm.run.checkpoint import read_checkpoint, write_checkpoint
from pipeline.errors import ArtefactError
from pipeline.files import replacing

VALIDATIONS_FILE = "validations.parquet"
FOLDER = "candidates"


class Candidates:
    """The validated epochs of a run.

    VALIDATIONS_FILE has a row for each image of each validation: epoch, sample_id, dsc (fraction).
    FOLDER has weights of epochs that are not chosen now and still may be; none when the run ends.

    epochs      in order
    sample_ids  of the selection split, in the order of every validation
    """

    def __init__(self, run: Path, sample_ids: Sequence[str]) -> None:
        self.run = run
        self.sample_ids = sample_ids
        self.epochs: list[int] = []
        self._dsc: list[NDArray[np.float64]] = []

    @property
    def dsc(self) -> NDArray[np.float64]:
        """Of each validation and image: (k, n) float64, fractions."""
        return np.stack(self._dsc)

    def add(self, epoch: int, dsc: NDArray[np.float64]) -> None:
        """One validation more, on disk too; dsc (n,)."""
        self.epochs.append(epoch)
        self._dsc.append(dsc)
        count = len(self.sample_ids)
        rows = {
            "epoch": np.repeat(np.array(self.epochs, np.int32), count),
            "sample_id": [*self.sample_ids] * len(self.epochs),
            "dsc": np.concatenate(self._dsc),
        }
        with replacing(self.run / VALIDATIONS_FILE) as partial:
            pl.DataFrame(rows).write_parquet(partial)

    def restore(self, validations: int) -> None:
        """Put back the first so many validations; later ones are made again.

        raises  ArtefactError when they are not all there
        """
        if not validations:
            return
        file = self.run / VALIDATIONS_FILE
        fix = "train the run anew: --overwrite, or another --out"
        try:
            rows = pl.read_parquet(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ArtefactError(f"{file} cannot be read: {error}", fix) from error
        parts = rows.partition_by("epoch", maintain_order=True)[:validations]
        if len(parts) < validations:
            raise ArtefactError(f"{file} has {len(parts)} of {validations} validations", fix)
        self.epochs = [int(part["epoch"][0]) for part in parts]
        self._dsc = [part["dsc"].to_numpy() for part in parts]

    def keep(self, epoch: int, weights: dict[str, Tensor]) -> None:
        """Keep the weights of an epoch until `drop`."""
        write_checkpoint(self._file(epoch), weights, {"epoch": epoch})

    def weights(self, epoch: int) -> dict[str, Tensor]:
        """What `keep` kept; raises ArtefactError when it is not there."""
        return read_checkpoint(self._file(epoch))[0]

    def drop(self, still: Collection[int] = ()) -> None:
        """Remove the weights of all epochs but some; after the checkpoint that has no need of them.

        Killed before it, a run goes on from a state in which they may still be chosen.
        """
        wanted = {self._file(epoch) for epoch in still}
        folder = self.run / FOLDER
        for file in folder.glob("*"):
            if file not in wanted:
                file.unlink()
        if folder.exists() and not wanted:
            folder.rmdir()

    def _file(self, epoch: int) -> Path:
        return self.run / FOLDER / f"epoch-{epoch:04d}.safetensors"
