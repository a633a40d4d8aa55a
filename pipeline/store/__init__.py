"""The latent store: a zarr v3 group of keyed cells, written, read and checked here."""

from pipeline.store.folder import store_exists
from pipeline.store.latent_store import LatentStore, open_store

__all__ = ["LatentStore", "open_store", "store_exists"]
