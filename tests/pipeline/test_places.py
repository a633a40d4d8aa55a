"""Words to places: paths stay paths, URLs are read alike, credentials in them are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from object_store import KEY, SECRET, Server, upload

from pipeline.errors import InputError, UsageError
from pipeline.places import file_system, is_folder, place_of, read, require_no_credentials
from pipeline.store import open_store


@pytest.mark.parametrize("words", ["data", "/data/a b", "../data", "a:b/c@d", "s3:/bucket"])
def test_words_without_a_protocol_are_a_path_as_written(words: str) -> None:
    assert type(place_of(words)) is type(Path(words))
    assert str(place_of(words)) == words


def test_a_place_on_s3_reads_as_its_files_on_disk(s3: Server, tmp_path: Path) -> None:
    folder = tmp_path / "a (1)"
    for name in ("b #1.png", "c%20d.txt", "sub/ö.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    place = place_of(upload(folder, f"{s3.bucket}/data/a (1)"))
    assert str(place) == f"{s3.bucket}/data/a (1)"
    assert str(place_of(str(place)).resolve()) == str(place)
    assert sorted(path.name for path in place.iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )
    assert is_folder(place / "sub")
    assert not is_folder(place / "b #1.png")
    assert not is_folder(place / "nowhere")
    assert not is_folder(place_of("s3://nobodys-bucket/data"))
    assert read(place / "sub" / "ö.png") == "sub/ö.png".encode()
    with pytest.raises(FileNotFoundError):
        read(place / "nowhere.png")


def test_what_was_listed_before_is_looked_at_again(s3: Server, tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    url = upload(tmp_path, f"{s3.bucket}/growing")
    assert [path.name for path in place_of(url).iterdir()] == ["one"]
    (tmp_path / "two").touch()
    upload(tmp_path, url)
    assert sorted(path.name for path in place_of(url).iterdir()) == ["one", "two"]


def test_a_file_that_may_not_be_read_is_bad_input_that_names_it(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").touch()
    place = place_of(upload(tmp_path, f"{s3.bucket}/closed"))
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    with pytest.raises(InputError, match=f"^{s3.bucket}/closed/one: .*Forbidden") as caught:
        read(place / "one")
    assert "AWS_ACCESS_KEY_ID" in caught.value.fix


@pytest.mark.parametrize("missing", ["upath", "s3fs"])
def test_without_the_packages_a_folder_is_ingested_and_s3_says_what_to_install(
    missing: str, raw: Path, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from cli.main import main; main()"

    def ingest(root: str) -> subprocess.CompletedProcess[str]:
        words = ["ingest", root, "--layout", "busi", "-o", str(tmp_path / "m.parquet")]
        command = [sys.executable, "-c", code, *words]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)

    refused = ingest("s3://bucket/data")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: s3://bucket/data: ")
    assert "fix: pip install 'gms-lmm[s3]'" in refused.stderr
    assert ingest(str(raw)).returncode == 0


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="warp://bucket/data"):
        file_system("warp://bucket/data")


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET}@bucket/data",  # the secret has a slash
        f"s3://{KEY}@bucket/data",
        f"simplecache::s3://{KEY}:{SECRET.replace('/', '')}@bucket/data",
        f"https://me:{SECRET}@host:9000/data",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    for refuse in (place_of, file_system, open_store, require_no_credentials):
        with pytest.raises(UsageError, match="credentials do not belong") as caught:
            refuse(url)
        assert not any(word in str(caught.value) for word in (KEY, SECRET, "wJalrXUtnFEMI"))


@pytest.mark.parametrize(
    "url", ["s3://bucket/a@2x/b.png", "http://host:9000/a@b", "s3://bucket/a:b@c", "me@host:a"]
)
def test_an_at_sign_in_a_path_is_none(url: str) -> None:
    require_no_credentials(url)
