"""An archive as published in, a manifest of checked, paired and split samples out."""

from pipeline.archive.ingest import Ingest, build_manifest

__all__ = ["Ingest", "build_manifest"]
