"""A Dask cluster of processes, to be killed one by one; each cell a worker encodes is written down.

Run as a program it is `dask worker`, whose workers are forked from one process that has everything
imported; each worker imports this file, too.
"""

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client

ROOT = Path(__file__).parents[2]
_CELLS = "GMS_LMM_TEST_CELLS"


class Cluster:
    """Scheduler and workers, each with a nanny that starts another when it dies.

    cells  the file that workers write to: a line for each batch, process and cells
    """

    def __init__(self, folder: Path, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self.cells = folder / "cells.txt"
        self.cells.touch()
        self._folder = folder
        self._workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        """Start all of it, and wait for every worker."""
        common = ["--no-dashboard"]
        scheduler = ["-m", "distributed.cli.dask_scheduler"]
        self._run(
            "scheduler", *scheduler, "--host", "127.0.0.1", "--port", str(self._port), *common
        )
        workers = ["--nworkers", str(self._workers), "--nthreads", "1", "--memory-limit", "0"]
        self._run("workers", __file__, self.address, *workers, "--preload", __file__, *common)
        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(self._workers, timeout=60)

    def encoded(self) -> int:
        """Cells that went through a tokenizer, also of workers that died before they wrote them."""
        return sum(int(line.split()[1]) for line in self.cells.read_text().splitlines())

    def busy(self) -> int:
        """The process that encoded last."""
        return int(self.cells.read_text().splitlines()[-1].split()[0])

    def kill(self) -> None:
        """Scheduler first, then the workers, who wait for another for ever."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
        self._processes.clear()

    def _run(self, name: str, *words: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), _CELLS: str(self.cells)}
        environment["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)


@contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """A cluster for the length of a block."""
    cluster = Cluster(folder, workers)
    try:
        yield cluster
    finally:
        cluster.kill()


def dask_setup(_worker: Any) -> None:
    """Count what each worker encodes; called by Dask."""
    from pipeline.encode.cells import CellEncoder

    encode = CellEncoder.__call__

    def counting(self: CellEncoder, images: Any, *more: Any) -> Any:
        with Path(os.environ[_CELLS]).open("a") as file:
            file.write(f"{os.getpid()} {len(images)}\n")
        return encode(self, images, *more)

    CellEncoder.__call__ = counting  # type: ignore[method-assign]


def processes(cluster: Cluster) -> Counter[int]:
    """Batches that each process has encoded."""
    return Counter(int(line.split()[0]) for line in cluster.cells.read_text().splitlines())


if __name__ == "__main__":
    from distributed.cli.dask_worker import main
    from distributed.utils import get_mp_context

    get_mp_context().set_forkserver_preload(["pipeline.encode.worker"])
    main()
