"""Words of a place, local or a URL, to what reads it; refusals of object stores to our errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec

from pipeline.errors import GmsLmmError, InputError, UsageError

Fault = TypeVar("Fault", bound=GmsLmmError)

# user@ or key:secret@ after ://, where a secret may have a slash and host:8080/ is no secret.
_CREDENTIALS = re.compile(r"(://)(?:[^/@]*|[^/:@]*:(?!\d+/)[^@]*)@")
_NETWORK = {"botocore", "aiohttp", "fsspec"}  # whose errors are of an object store
_EXTRA = "pip install 'gms-lmm[s3]' for s3://…; other URLs want the package that fsspec names"


def place_of(words: str | Path) -> Path:
    """Where words lead: a pathlib.Path, or for a URL what has its interface (universal-pathlib).

    raises  UsageError for a URL with credentials in it, or one that nothing installed can read
    """
    url = str(words)
    if "://" not in url:
        return Path(words)
    fs, _ = file_system(url)
    fs.invalidate_cache()
    try:
        from upath import UPath
    except ImportError as error:
        raise UsageError(f"{url}: {error}", _EXTRA) from error
    return cast(Path, UPath(url))


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL or a local path, and the path in it; raises as `place_of`."""
    require_no_credentials(url)
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url}: {error}", _EXTRA) from error
    return fs, path


def require_no_credentials(words: str) -> None:
    """Raise UsageError, which does not repeat them, when words are a URL with credentials in it."""
    without, found = _CREDENTIALS.subn(r"\1…@", words)
    if found:
        raise UsageError(
            f"{without}: credentials do not belong into a URL, which is "
            "written to manifests, stores, runs and logs",
            "leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in "
            "~/.aws; if this URL was kept anywhere, replace the key",
        )


def is_folder(place: Path) -> bool:
    """Whether there is a folder; raises InputError as `reaching` does."""
    with reaching(place):
        return place.is_dir()


def read(place: Path) -> bytes:
    """The content of a file; raises OSError as reading does, and InputError as `reaching`."""
    with reaching(place):
        return place.read_bytes()


@contextmanager
def reaching(place: Path) -> Iterator[None]:
    """Raise InputError when an object store does not answer, or refuses what is asked for inside.

    What is not there is still a FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if refused := refusal(error, str(place), InputError):
            raise refused from error
        raise


def refusal(error: Exception, where: str, kind: type[Fault]) -> Fault | None:
    """What an object store has refused, or why it gave no answer, as an error of a kind of ours.

    where   the place, for the message
    returns None when the error has nothing to do with S3
    """
    # s3fs gives what S3 has answered as the cause of an OSError, all else as it was raised.
    origin = error.__cause__ if isinstance(error, OSError) and error.__cause__ else error
    names = [one.__name__ for one in type(origin).__mro__ if _package(one) in _NETWORK]
    if not names:
        return None
    if isinstance(error, PermissionError) or "NoCredentialsError" in names:
        fix = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws, that may do "
            "this; AWS_ENDPOINT_URL where it is not Amazon's"
        )
    else:
        fix = "check the bucket's name, AWS_ENDPOINT_URL and the network; then run it again"
    return kind(f"{where}: {origin}", fix)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
