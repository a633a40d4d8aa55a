"""A lease on an object store: a lock that its owner renews, and that others take when it has not.

An object store has no locks, but it creates an object for one of several writers alone. A lease
that was not renewed for LEASE_S is free. Its owner counts the same time, a minute less, and then
holds it no longer, whoever has it: the clocks of those who share a store agree to a minute.
"""

import json
import threading
import time
import uuid
from typing import Any

RENEW_S = 30
LEASE_S = 600
_MARGIN_S = 60
_SETTLE_S = 0.4


class Lease:
    """The lease at one path, to be taken by one owner once."""

    def __init__(self, fs: Any, path: str, owner: dict[str, Any]) -> None:
        self._fs = fs
        self._path = path
        self._owner = {**owner, "token": uuid.uuid4().hex}
        self._alive = 0.0  # when it was last renewed; of the clock that goes on in a suspended host
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._keep, daemon=True)

    def take(self) -> bool:
        """Take it if nobody holds it; whether it is held now."""
        if not self._create():
            other = self.owner()
            if other is None or not _ran_out(other) or not self._inherit():
                return False
        self._renewal.start()
        return True

    def owner(self) -> dict[str, Any] | None:
        """Who holds it or was the last to; None when it was given back."""
        self._fs.invalidate_cache()
        try:
            return dict(json.loads(self._fs.cat_file(self._path)))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def still_held(self) -> bool:
        """Whether it is the owner's still: renewed in time, and taken over by nobody."""
        if time.time() - self._alive > LEASE_S - _MARGIN_S:
            return False
        return self._is_own()

    def release(self) -> None:
        """Give it back; one that is another's by now stays."""
        self._ended.set()
        if self._renewal.is_alive():
            self._renewal.join()
        if self.still_held():
            self._fs.rm_file(self._path)

    def _create(self) -> bool:
        began = time.time()
        try:
            self._write(mode="create")  # conditional: of several, one succeeds
        except FileExistsError:
            if not self._is_own():
                return False
            self._alive = began  # created, but the answer was lost, and what was asked again failed
        return True

    def _is_own(self) -> bool:
        return bool((self.owner() or {}).get("token") == self._owner["token"])

    def _inherit(self) -> bool:
        """Take over one that ran out; of several that do so at once, the last to write has it."""
        self._write()
        time.sleep(_SETTLE_S)
        return self.still_held()

    def _write(self, **mode: str) -> None:
        now = time.time()
        self._fs.pipe_file(self._path, json.dumps({**self._owner, "alive": now}).encode(), **mode)
        self._alive = now

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                if not self.still_held():
                    return  # never taken back
                self._write()
            except Exception:  # of whatever store: what is not renewed runs out
                continue


def _ran_out(owner: dict[str, Any]) -> bool:
    return bool(time.time() - owner.get("alive", 0.0) > LEASE_S)
