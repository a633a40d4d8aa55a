"""Images and stores at s3:// from the command line: as on a disk, failures retried or told."""

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
import small
import torch
from click.testing import CliRunner, Result
from object_store import KEY, SECRET, Server, at_endpoint, upload
from safetensors.torch import load_file

from cli.main import main
from pipeline.manifest import read_manifest
from pipeline.store import open_store

SIZE = ["--size", str(small.SIZE_PX)]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


@dataclass(frozen=True)
class Workplace:
    """Where the words of commands lead: images at `root`, the store at `store`, all else local."""

    root: str
    store: str
    home: Path
    tokenizer: str

    @property
    def manifest(self) -> str:
        return str(self.home / "m.parquet")

    def train(self, out: str = "run") -> list[str]:
        words = ["train", "--latents", self.store, "--out", str(self.home / out), "--loss", "lm"]
        words += ["--epochs", "2", "--batch-size", "1", "--width", "16", "--precision", "fp32"]
        return [*words, "--residency", "stream"]

    def commands(self) -> dict[str, list[str]]:
        """Every command that reads images or the store."""
        run, peer = str(self.home / "run"), str(self.home / "peer")
        few = ["--views", "1", "--epochs", "1", "--batch-size", "1"]
        split = ["--split", "0.5/0.5", "--val-fraction", "0.34"]
        encode = ["--tokenizer", self.tokenizer, "--views", "2", *SIZE]
        return {
            "ingest": ["ingest", self.root, "--layout", "busi", "-o", self.manifest, *split],
            "encode": ["encode", self.manifest, self.store, *encode],
            "inspect": ["inspect", self.store],
            "preview": ["preview", self.manifest, "-o", str(self.home / "sheet.png"), *SIZE],
            "train": self.train(),
            "evaluate": ["evaluate", "--run", run, "--latents", self.store, "--native"],
            "report": ["report", run, "-o", str(self.home / "run.html")],
            "baseline": ["baseline", self.manifest, "--out", peer, *SIZE, *few],
            "judge": ["evaluate", "--run", peer, "--manifest", self.manifest, "--native"],
            "page": ["report", peer, "-o", str(self.home / "peer.html")],
        }


@dataclass(frozen=True)
class Done:
    """A workplace where commands have been run, and what they printed."""

    place: Workplace
    said: dict[str, dict[str, Any]]
    output: str

    def file(self, name: str) -> bytes:
        return (self.place.home / name).read_bytes()


def work(place: Workplace, *names: str) -> Done:
    commands = place.commands()
    results = {name: run(*commands[name], "--json") for name in names or commands}
    for name, result in results.items():
        assert result.exit_code == 0, f"{name}: {result.output}"
    said = {name: json.loads(result.stdout) for name, result in results.items()}
    return Done(place, said, "".join(result.output for result in results.values()))


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, kl_folder: Path) -> Done:
    """Everything on a disk."""
    home = tmp_path_factory.mktemp("near")
    raw = small.write_busi(home / "raw")
    return work(Workplace(str(raw), str(home / "s.zarr"), home, str(kl_folder)))


@pytest.fixture(scope="module")
def far(s3: Server, near: Done, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The same from images and with a store on S3."""
    root = upload(Path(near.place.root), f"{s3.bucket}/data")
    home = tmp_path_factory.mktemp("far")
    return work(Workplace(root, f"{s3.bucket}/s.zarr", home, near.place.tokenizer))


def test_manifest_and_store_of_images_on_s3_are_those_of_the_same_on_disk(
    near: Done, far: Done
) -> None:
    one, other = read_manifest(near.place.manifest), read_manifest(far.place.manifest)
    assert one.frame.equals(other.frame)
    assert str(other.root) == f"{far.place.root}/Dataset_BUSI_with_GT"
    assert open_store(near.place.store).receipt() == open_store(far.place.store).receipt()
    assert far.said["encode"]["encoded"] == 12
    assert near.file("sheet.png") == far.file("sheet.png")


def test_training_that_streams_from_s3_gives_the_weights_of_the_local_store(
    near: Done, far: Done
) -> None:
    for name in ("run/best", "run/last", "peer/best"):
        one, other = (load_file(done.place.home / f"{name}.safetensors") for done in (near, far))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[part], other[part]) for part in one), name


@pytest.mark.parametrize("command", ["evaluate", "judge"])
def test_scores_at_the_size_of_originals_on_s3_are_those_of_the_same_on_disk(
    near: Done, far: Done, command: str
) -> None:
    one, other = near.said[command], far.said[command]
    assert one["native"] == other["native"]
    assert one["dsc"] == other["dsc"]


@pytest.mark.parametrize("page", ["run.html", "peer.html"])
def test_pages_show_as_many_images(near: Done, far: Done, page: str) -> None:
    shown = near.file(page).count(b"data:image")
    assert shown > 0
    assert far.file(page).count(b"data:image") == shown


def test_failed_requests_are_asked_again(s3: Server, near: Done, tmp_path: Path) -> None:
    """What is answered with 503, before it is done or after, or with the half of its body."""
    root = upload(Path(near.place.root), f"{s3.bucket}/flaky")
    place = Workplace(root, f"{s3.bucket}/flaky.zarr", tmp_path, near.place.tokenizer)

    def fails(method: str, path: str) -> str | None:
        chance = zlib.crc32(f"{method} {path}".encode()) % 24
        if chance < 1:
            return "refused"
        if chance < 2:
            return "unheard"
        return "cut" if chance < 12 and method == "GET" and "?" not in path else None

    with s3.failing(fails):
        done = work(place, "ingest", "encode", "train")
    assert min(s3.failed["refused"], s3.failed["unheard"]) >= 2
    assert s3.failed["cut"] >= 10
    assert done.said["encode"]["encoded"] == 12
    assert read_manifest(place.manifest).frame.equals(read_manifest(near.place.manifest).frame)
    assert open_store(place.store).receipt() == open_store(near.place.store).receipt()
    assert done.file("run/best.safetensors") == near.file("run/best.safetensors")


def test_what_keeps_failing_is_one_line_and_no_sample_is_left_out_for_it(
    s3: Server, far: Done, tmp_path: Path
) -> None:
    root, new = far.place.root, str(tmp_path / "new")

    def fails(method: str, path: str) -> str | None:
        of_data = "/malignant%20" in path or "/mask/" in path
        return "cut" if method == "GET" and of_data and "?" not in path else None

    with s3.failing(fails, forever=True):
        ingest = run("ingest", root, "--layout", "busi", "-o", new, "--skip-bad")
        encode = run(
            "encode", far.place.manifest, new, *far.place.commands()["encode"][3:], "--json"
        )
        verify = run("verify", far.place.store)
    for result, exit_code, where in (
        (ingest, 3, f"{root}/Dataset_BUSI_with_GT/malignant/malignant ("),
        (encode, 3, f"{root}/Dataset_BUSI_with_GT/malignant/malignant ("),
        (verify, 4, far.place.store),
    ):
        assert result.exit_code == exit_code, result.output
        assert result.stderr.startswith(f"error: {where}")
        assert "Response payload is not completed" in result.stderr
        assert result.stderr.count("\n") == 2
    assert not Path(new).is_file()


@contextmanager
def trouble(kind: str, s3: Server, folder: Path) -> Iterator[str]:
    """The bucket to ask for, while that has no answer."""
    with pytest.MonkeyPatch.context() as patch:
        bucket, endpoint, keys = s3.bucket, s3.endpoint, {}
        if kind == "wrong keys":
            patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        elif kind == "no keys":
            keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
        elif kind == "no bucket":
            bucket = "s3://nobodys-bucket"
        else:
            endpoint, keys = "http://127.0.0.1:9", {"AWS_MAX_ATTEMPTS": "1"}
        with at_endpoint(endpoint, folder, **keys):
            yield bucket


@pytest.mark.parametrize(
    ("kind", "says", "fix"),
    [
        ("wrong keys", r"\((InvalidAccessKeyId|403)\)", "AWS_ACCESS_KEY_ID"),
        ("no keys", "Unable to locate credentials", "AWS_ACCESS_KEY_ID"),
        ("no bucket", "nobodys-bucket", ""),
        ("no endpoint", "Could not connect to the endpoint URL", "AWS_ENDPOINT_URL"),
    ],
)
def test_an_object_store_that_gives_no_answer_is_one_line(
    s3: Server, near: Done, far: Done, tmp_path: Path, kind: str, says: str, fix: str
) -> None:
    new = str(tmp_path / "new")
    images = str(tmp_path / "images.parquet")
    encode = ["--tokenizer", near.place.tokenizer, *SIZE]
    with trouble(kind, s3, tmp_path) as bucket:
        root = pl.lit(f"{bucket}/data/Dataset_BUSI_with_GT")
        pl.read_parquet(far.place.manifest).with_columns(root=root).write_parquet(images)
        before = sorted(tmp_path.rglob("*"))
        for words, exit_code in (
            (["ingest", f"{bucket}/data", "--layout", "busi", "-o", new], 3),
            # A folder of images that is not there is, as on a disk, a manifest that is stale.
            (["encode", images, new, *encode], 4 if kind == "no bucket" else 3),
            (["encode", near.place.manifest, f"{bucket}/new.zarr", *encode], 4),
            (["inspect", f"{bucket}/s.zarr"], 4),
            (["train", "--latents", f"{bucket}/s.zarr", "--out", new], 4),
        ):
            result = run(*words)
            assert result.exit_code == exit_code, result.output
            assert result.stdout == ""
            error, _, advice = result.stderr.partition("\nfix: ")
            assert error.startswith("error: ")
            assert bucket in error
            assert re.search(says, error)
            assert "\n" not in error
            assert fix in advice
            assert SECRET not in result.output
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "URL", "--layout", "busi"],
        ["encode", "m.parquet", "URL", "--tokenizer", "tiny-vae"],
        ["inspect", "URL"],
        ["train", "--latents", "URL"],
        ["train", "--latents=URL"],
        ["copy", "s.zarr", "URL"],
        ["evaluate", "--run", "run", "--latents", "URL"],
    ],
    ids=" ".join,
)
def test_credentials_in_a_url_are_refused_and_not_repeated(words: list[str]) -> None:
    url = f"s3://{KEY}:{SECRET}@bucket/s.zarr"
    result = run(*[word.replace("URL", url) for word in words])
    assert result.exit_code == 2
    assert "s3://…@bucket/s.zarr: credentials do not belong into a URL" in result.stderr
    assert "fix: leave them out and set AWS_ACCESS_KEY_ID" in result.stderr
    assert SECRET not in result.output
    assert KEY not in result.output


def test_no_file_object_or_line_holds_the_keys(s3: Server, far: Done) -> None:
    fs = fsspec.filesystem("s3")
    written = [path.read_bytes() for path in far.place.home.rglob("*") if path.is_file()]
    written += [fs.cat_file(path) for path in fs.find(s3.bucket)]
    assert len(written) > 40
    for content in [*written, far.output.encode()]:
        assert SECRET.encode() not in content
        assert KEY.encode() not in content
