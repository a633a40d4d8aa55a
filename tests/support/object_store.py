"""An S3 server of the tests' own: moto's, whose answers may be made to fail."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import fsspec
import pytest
from s3fs import S3FileSystem
from werkzeug.serving import make_server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of moto's own dependencies
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )

Environ = dict[str, Any]
Respond = Callable[..., Any]
Fails = Callable[[str, str], str | bool | None]

_FORGOTTEN: list[S3FileSystem] = []

KEY, SECRET = "AKIDOFTHETESTS", "SecretOfTheTests/wJalrXUtnFEMI+K7MDENG"


class Server:
    """A server at `endpoint` with a bucket at `bucket`, which may be made to fail.

    failed  how many requests did, by how they did
    """

    bucket = "s3://bucket"

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()
        self._fails: Fails = lambda _method, _path: None
        self._tried: set[tuple[str, str]] = set()
        self._forever = False
        self._turn = Lock()
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()

    @contextmanager
    def failing(self, fails: Fails, *, forever: bool = False) -> Iterator[None]:
        """Some requests fail inside, at their first attempt or at each; `fails` says how.

        It is asked with method and path: "refused" is answered with 503, "cut" with the half of
        its body, "unheard" is done and then answered with 503.
        """
        self.failed, self._tried, self._fails = Counter(), set(), fails
        self._forever = forever
        yield
        self._fails = lambda _method, _path: None

    def _answer(self, environ: Environ, respond: Respond) -> Iterable[bytes]:
        how = self._how(environ["REQUEST_METHOD"], environ["RAW_URI"])
        if not how:
            return list(self._application(environ, respond))
        if how == "cut":
            body = b"".join(self._application(environ, respond))
            return [body[: len(body) // 2]]
        if how == "unheard":
            list(self._application(environ, lambda *_: None))
        respond("503 Service Unavailable", [("Content-Length", "0")])
        return []

    def _how(self, method: str, path: str) -> str | bool | None:
        with self._turn:
            if (method, path) in self._tried and not self._forever:
                return None
            self._tried.add((method, path))
            if how := self._fails(method, path):
                self.failed[str(how)] += 1
            return how


@contextmanager
def at_endpoint(endpoint: str, folder: Path, **more: str | None) -> Iterator[None]:
    """Whatever asks for s3:// inside asks there, with the keys of the tests and no others.

    more    settings in the place of these, or None to have none
    """
    settings: dict[str, str | None] = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (settings | more).items():
            if value is None:
                patch.delenv(key, raising=False)
            else:
                patch.setenv(key, value)
        _forget_connections()
        yield
    _forget_connections()


def _forget_connections() -> None:
    """Those of another endpoint or with other keys; kept alive, for they warn of being dropped."""
    _FORGOTTEN.extend(S3FileSystem._cache.values())
    S3FileSystem.clear_instance_cache()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that s3:// leads to inside; `folder` is an empty one."""
    server = Server()
    with at_endpoint(server.endpoint, folder):
        fs = fsspec.filesystem("s3")
        if fs.exists(server.bucket):  # moto's buckets are the process's
            fs.rm(server.bucket, recursive=True)
        fs.mkdir(server.bucket)
        yield server
    server.stop()


def upload(folder: Path, url: str) -> str:
    """A folder's files at a URL."""
    fs, root = fsspec.core.url_to_fs(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url
