"""The small data set encoded, what its store then holds, and a tokenizer under stress."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import small

from pipeline.encode import EncodeReport, encode
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store.finish import array_digests
from pipeline.tokenizer import Tokenizer


def run(manifest: Manifest, url: str, tokenizer: Tokenizer, **settings: Any) -> EncodeReport:
    return encode(manifest, url, tokenizer, **{"views": 2, "size": small.SIZE_PX, **settings})


def files(url: str) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file of a store."""
    found = [path for path in Path(url).rglob("*") if path.is_file()]
    return {str(p.relative_to(url)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def digests(url: str) -> dict[str, str]:
    return array_digests(open_store(url))


def fresh_digests(
    manifest: Manifest, tokenizer: Tokenizer, tmp_path: Path, **settings: Any
) -> dict[str, str]:
    """What an encode that nothing disturbs gives."""
    url = str(tmp_path / "undisturbed.zarr")
    run(manifest, url, tokenizer, **settings)
    return digests(url)


def counts(report: EncodeReport) -> tuple[int, int, int]:
    return report.encoded, report.reused, report.present


class Stressed:
    """A tokenizer of which `encode` is another function; all else as it is."""

    def __init__(self, tokenizer: Tokenizer, encode: Callable[..., Any]) -> None:
        self.tokenizer = tokenizer
        self.encode = encode

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)
