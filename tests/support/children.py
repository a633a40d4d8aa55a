"""Commands of gms-lmm in forked children: killed or held at a chosen file, their reading recorded.

The process that forks has everything imported and has run nothing of it, so that a command costs
no imports and no thread is lost in the fork.
"""

import hashlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cli.main
import lmm.batches
import lmm.latents
import lmm.student.file
import pipeline.store.create

SHARD_SAMPLES = 4
HUNG_S = 60.0
_IMPORTED = (
    *(f"cli.{name.replace('-', '_')}" for name in cli.main.COMMANDS),
    "lmm.evaluate.ceiling",
    "lmm.train",
    "pipeline.archive.checks",
    "pipeline.encode.work",
    "pipeline.store.diff",
    "pipeline.store.inspect",
    "pipeline.store.prune",
    "pipeline.store.verify",
    "rich._emoji_codes",
)
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def prepare() -> None:
    """Import what commands import, and make shards and lessons small; once, before any fork."""
    for name in _IMPORTED:
        importlib.import_module(name)
    pipeline.store.create.SHARD_SAMPLES = SHARD_SAMPLES
    lmm.student.file.FIRST_PAIRS, lmm.student.file.FIRST_LESSONS = 16, 4


@dataclass(frozen=True)
class Moment:
    """When a command is killed, or held until it is released: before its n-th touch of a file.

    number  counted from 1; changes of files count for `kill`, reads as well for `hold`
    act     kill or hold
    below   how the paths of files begin that count
    """

    number: int
    act: str
    below: str


class Child:
    """A command that runs: `stdout`, `stderr` and `consumed` are files in a folder of its own."""

    def __init__(self, args: Sequence[str], place: Path, moment: Moment | None = None) -> None:
        place.mkdir(parents=True)
        for name in ("stdout", "stderr"):  # there, however early it is killed
            (place / name).touch()
        self.args, self.place = list(args), place
        self.code: int | None = None
        told, tells = os.pipe()
        waits, self._go = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(told)
            os.close(self._go)
            _live(args, place, moment, tells, waits)
        os.close(tells)
        os.close(waits)
        self._told = told

    def until_held(self) -> bool:
        """Wait until it is held; False when it ends before."""
        ready, _, _ = select.select([self._told], [], [], HUNG_S)
        return bool(ready) and os.read(self._told, 1) == b"h"

    def release(self) -> None:
        """Let it go on, if it is held."""
        if not self.done():
            with suppress(BrokenPipeError):
                os.write(self._go, b"g")

    def kill(self) -> None:
        """As SIGKILL does, if it has not ended."""
        if not self.done():
            os.kill(self.pid, signal.SIGKILL)

    def done(self) -> bool:
        """Whether it has ended; `code` is then its exit code, negative of a signal."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                os.close(self._told)
                os.close(self._go)
        return self.code is not None

    def wait(self, at_most_s: float = HUNG_S) -> bool:
        """Wait for its end; False when it has none in that time."""
        until = time.monotonic() + at_most_s
        while not self.done() and time.monotonic() < until:
            time.sleep(0.002)
        return self.done()

    @property
    def talk(self) -> str:
        """What it said on stderr."""
        return (self.place / "stderr").read_text()

    @property
    def error(self) -> str:
        """What it ended with: its error's first line, or a traceback's last."""
        lines = [line for line in self.talk.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return next(iter(errors or lines[-1:]), "")

    @property
    def data(self) -> str:
        """What it printed on stdout."""
        return (self.place / "stdout").read_text()

    @property
    def consumed(self) -> list[dict[str, Any]]:
        """What it read as latents: one object a batch; a line cut short by a kill is left out."""
        log = self.place / "consumed"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return [json.loads(line) for line in lines]


def call(function: Callable[..., Any], *args: Any) -> Any:
    """A function's result, JSON types, from a forked child."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            torch.set_num_threads(1)
            with os.fdopen(writes, "w") as pipe:
                json.dump(function(*args), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        content = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{function.__name__} failed in its child")
    return json.loads(content)


def _live(args: Sequence[str], place: Path, moment: Moment | None, tells: int, waits: int) -> None:
    """The life of a child: one command, and never back."""
    code = 1
    try:
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), descriptor)
        torch.set_num_threads(1)
        _record(place / "consumed", args)
        if moment:
            sys.addaudithook(_watch(moment, tells, waits))
        try:
            cli.main.main(list(args), prog_name="gms-lmm")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _watch(moment: Moment, tells: int, waits: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Counts touches of files; kills this process before the wanted one, or holds it there."""
    left = [moment.number]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not str(args[0]).startswith(moment.below):
                return
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if moment.act == "kill" and not writes:
                return
        elif event not in _CHANGES:
            return
        left[0] -= 1
        if left[0] == 0 and moment.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif left[0] == 0:
            os.write(tells, b"h")
            os.read(waits, 1)

    return hook


# --- what is read on record


def digest_of(cell: bytes) -> str:
    """What a cell of one array is called on record."""
    return hashlib.blake2b(cell, digest_size=8).hexdigest()


def _record(log: Path, args: Sequence[str]) -> None:
    """Put down each batch before it is used: role, the run's receipt, and digests of every cell.

    A cell is [sample_id, view or None where it is not known, {array: digest}].
    """
    run = Path(args[list(args).index("--out") + 1]) if "--out" in args else None
    draw, batch = lmm.batches._Draw.batch, lmm.latents.Latents.batch
    z_mask = lmm.latents.Latents.z_mask.fget
    role = ["clean"]

    def write(role: str, cells: list[Any]) -> None:
        receipt = None
        if run is not None and (run / "run.json").exists():
            receipt = json.loads((run / "run.json").read_text())["store"]["receipt"]
        line = json.dumps({"role": role, "receipt": receipt, "cells": cells})
        with log.open("a") as file:
            file.write(line + "\n")

    def drawn(self: Any, *args: Any) -> Any:
        role[0] = "train"
        try:
            return draw(self, *args)
        finally:
            role[0] = "clean"

    def batched(self: Any, view: Any, sample: Any, *args: Any) -> Any:
        places = list(zip(view.tolist(), sample.tolist(), strict=True))
        known = role[0] == "clean" or self.views > 1
        write(role[0], [_cell(self, *place, known=known) for place in places])
        return batch(self, view, sample, *args)

    def all_masks(self: Any) -> Any:
        places = [(view, sample) for view in range(self.views) for sample in range(len(self))]
        cells = [_cell(self, *place, known=self.views > 1) for place in places]
        of_masks = [[name, view, {"mask_mean": of["mask_mean"]}] for name, view, of in cells]
        write("student", of_masks)
        return z_mask(self)

    lmm.batches._Draw.batch = drawn  # type: ignore[method-assign]
    lmm.latents.Latents.batch = batched  # type: ignore[method-assign]
    lmm.latents.Latents.z_mask = property(all_masks)  # type: ignore[assignment,method-assign]


def _cell(latents: Any, view: int, sample: int, *, known: bool) -> list[Any]:
    arrays = {
        "image_mean": latents.image_mean,
        "image_std": latents.image_std,
        "mask_mean": latents.mask_mean,
        "mask": latents.mask_bits,
    }
    digests = {
        name: digest_of(array[view, sample].numpy().tobytes())
        for name, array in arrays.items()
        if array is not None
    }
    return [latents.sample_ids[sample], view if known else None, digests]
