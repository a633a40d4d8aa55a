"""The batches of an epoch, from memory or streamed from the store: a function of seed and epoch."""

import os
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from lmm.latents import Batch, Latents, SplitReader, load_latents
from lmm.settings import TrainSettings
from lmm.splits import rows_to_train_on
from pipeline.ahead import map_ahead
from pipeline.seeds import seed_at
from pipeline.store import LatentStore

Read = TypeVar("Read", covariant=True)  # what one step reads: of an LMM, a Batch


class Batches(Protocol[Read]):
    """The training samples as a model reads them."""

    def __len__(self) -> int:
        """Samples of an epoch."""

    def epoch(self, epoch: int) -> Iterator[Read]:
        """The batches of one epoch."""


class Resident:
    """A split in memory, the device's or the host's: each sample once an epoch, in any view."""

    def __init__(self, latents: Latents, settings: TrainSettings, device: torch.device) -> None:
        self.latents = latents
        self.settings = settings
        self.device = device

    def __len__(self) -> int:
        return len(self.latents)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        latents, size = self.latents, self.settings.batch_size
        draw = _Draw(self.settings, epoch, self.device)
        drawn = shuffled(len(latents), latents.views, draw.host)
        order, view = (places.to(latents.device) for places in drawn)
        for step in range(steps_per_epoch(len(latents), size)):
            rows = slice(step * size, (step + 1) * size)
            yield draw.batch(latents, view[rows], order[rows])


class Streamed:
    """A split read from the store again in every epoch, some shards ahead of the steps.

    Each sample comes once an epoch. All samples of a shard come in one view, drawn for shard and
    epoch. Shards come in random order, `shards_at_a_time` at a time, and their samples are mixed;
    as many shards more are read ahead.
    """

    def __init__(
        self,
        reader: SplitReader,
        settings: TrainSettings,
        device: torch.device,
        shards_at_a_time: int,
    ) -> None:
        self.reader = reader
        self.settings = settings
        self.device = device
        self.shards_at_a_time = shards_at_a_time

    def __len__(self) -> int:
        return len(self.reader.places)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        reader, size = self.reader, self.settings.batch_size
        draw = _Draw(self.settings, epoch, self.device)
        order = torch.randperm(len(reader.blocks), generator=draw.host).tolist()
        views = views_of(reader.store, self.settings)
        view = torch.randint(views, (len(order),), generator=draw.host).tolist()
        shards = [(view[i], reader.blocks[i]) for i in order]
        starts = range(0, len(shards), self.shards_at_a_time)
        groups = [shards[start : start + self.shards_at_a_time] for start in starts]
        left: dict[str, torch.Tensor] = {}
        smallest = min(size, len(self))
        for cells in map_ahead(self._read, groups, ahead=1):
            pool = {
                name: torch.cat([left.get(name, values[:0]), values])
                for name, values in cells.items()
            }
            arrays = {name: pool[name][None] for name in reader.names}
            latents = reader.latents(arrays, pool["row"].numpy())
            mixed = torch.randperm(len(latents), generator=draw.host)
            whole = len(latents) // smallest * smallest
            for start in range(0, whole, smallest):
                sample = mixed[start : start + smallest]
                yield draw.batch(latents, torch.zeros_like(sample), sample)
            left = {name: values[mixed[whole:]] for name, values in pool.items()}

    def _read(self, shards: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The cells of some shards, and their rows in the split."""
        rows = [self.reader.rows(block) for _, block in shards]
        ends = np.cumsum([0, *(of.stop - of.start for of in rows)])
        arrays = self.reader.empty(int(ends[-1]))
        with self.reader.store.unchanged():
            for (view, block), start, end in zip(shards, ends, ends[1:], strict=False):
                into = {name: array[start:end] for name, array in arrays.items()}
                self.reader.read(view, block, into)
        arrays["row"] = np.concatenate([np.arange(of.start, of.stop) for of in rows])
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Draw:
    """What is random in an epoch: order and views from `host`, noise on the device."""

    def __init__(self, settings: TrainSettings, epoch: int, device: torch.device) -> None:
        seed = seed_at(settings.seed, epoch)
        self.posterior = settings.posterior
        self.device = device
        self.host = torch.Generator().manual_seed(seed)
        self.normal = torch.Generator(device).manual_seed(seed)

    def batch(self, latents: Latents, view: torch.Tensor, sample: torch.Tensor) -> Batch:
        """The cells (view[i], sample[i]) on the device, with the posterior's noise."""
        noise = None
        # The authors add noise to one batch in two.
        noisy = self.posterior == "sample" or torch.rand((), generator=self.host) > 0.5
        if self.posterior != "mean" and noisy:
            shape = (len(sample), *latents.image_mean.shape[2:])
            noise = torch.randn(shape, generator=self.normal, device=self.device)
        return latents.batch(view, sample, self.posterior, noise, self.device)


def shuffled(
    samples: int, views: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples of an epoch in random order, and the view that each comes in: int64 (n,) both."""
    order = torch.randperm(samples, generator=generator)
    return order, torch.randint(views, (samples,), generator=generator)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Whole batches only, as the authors train; one smaller batch when there is no whole one."""
    return max(1, samples // batch_size)


def views_of(store: LatentStore, settings: TrainSettings) -> int:
    """Views of a store that a run is trained on."""
    return store.views if settings.views is None else min(settings.views, store.views)


def open_batches(
    store: LatentStore, settings: TrainSettings, device: torch.device
) -> Batches[Batch]:
    """What a run is trained on, held where `settings.residency` says.

    auto is the first of device, ram and stream where the split takes no more than the memory
    allowed: half of what the device has free, half of what the host has, or `memory_gib`.

    raises  as `SplitReader` and its `read` do
    """
    rows, views = rows_to_train_on(store.samples, settings), views_of(store, settings)
    what: dict[str, Any] = {"masks": settings.has_dice, "std": settings.has_noise, "rows": rows}
    reader = SplitReader(store, "train", **what)
    needed = views * len(reader.places) * reader.cell_bytes
    residency = settings.residency
    if residency == "auto":
        places = ("device", "ram") if device.type == "cuda" else ("ram",)
        fits = [place for place in places if needed <= _memory_allowed(settings, place, device)]
        residency = fits[0] if fits else "stream"
    if residency == "stream":
        shard = store.shard_samples * reader.cell_bytes
        # One group is in use while the next is read, and each is there twice as it is put together.
        shards = int(_memory_allowed(settings, "ram", device) / shard / 4)
        return Streamed(reader, settings, device, max(1, shards))
    home = device if residency == "device" else torch.device("cpu")
    latents = load_latents(store, "train", views=views, device=home, **what)
    return Resident(latents, settings, device)


def _memory_allowed(settings: TrainSettings, place: str, device: torch.device) -> float:
    """Bytes that latents may take in the memory of the device or of the host."""
    if settings.memory_gib is not None:
        return settings.memory_gib * 2**30
    if place == "device":
        return torch.cuda.mem_get_info(device)[0] / 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
