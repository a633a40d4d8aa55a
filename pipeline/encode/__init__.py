"""Manifest in, latent store out: what has to be encoded, and the encoding of it."""

from pipeline.encode.job import EncodeReport, encode

__all__ = ["EncodeReport", "encode"]
