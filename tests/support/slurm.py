"""A stand-in for SLURM: a queue without limits, whose jobs are processes of this machine.

Run as a program it is the command its first word names: sbatch, squeue, sacct, scancel, srun or
sinfo. What is known of a job lies in a folder of its own: what was asked for, its processes and its
state. A job that a signal ends has lost its node, and begins anew when submitted with --requeue.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "srun", "sinfo")
_HOME = "STAND_IN_SLURM"


class Slurm:
    """An empty queue in a folder, for a test to look into.

    environment  for processes that are to find the commands
    """

    def __init__(self, folder: Path) -> None:
        self.queue, commands = folder / "queue", folder / "bin"
        self.queue.mkdir(parents=True)
        commands.mkdir()
        for name in COMMANDS:
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
            script.chmod(0o755)
        self.environment = {_HOME: str(self.queue), "PATH": f"{commands}:{os.defpath}"}

    def jobs(self) -> list[dict[str, Any]]:
        """Every job in the order of submission: rule, words, state and processes, one a start."""
        numbers = sorted(int(folder.name) for folder in self.queue.iterdir())
        return [_read(self.queue / str(number)) for number in numbers]


def _read(folder: Path) -> dict[str, Any]:
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    started = (folder / "started").read_text().split()
    return {**job, "state": (folder / "state").read_text(), "processes": list(map(int, started))}


def sbatch(queue: Path, *words: str) -> None:
    """Write a job down, begin it in the background, and print its number."""

    def option(name: str) -> str:
        return words[words.index(name) + 1]

    number = 1 + sum(1 for _ in queue.iterdir())
    folder = queue / str(number)
    folder.mkdir()
    (folder / "state").write_text("PENDING")
    (folder / "started").touch()
    (command,) = (word for word in words if word.startswith("--wrap="))
    job = {
        "name": option("--job-name"),
        "rule": option("--comment"),
        "log": option("--output").replace("%j", str(number)),
        "folder": option("-D"),
        "command": command.removeprefix("--wrap="),
        "words": [word for word in words if word != command],
    }
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.Popen(
        [sys.executable, __file__, "node", str(number)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    sys.stdout.write(f"{number}\n")


def node(queue: Path, number: str) -> None:
    """Run a job to its end, as a node does."""
    folder = queue / number
    job = _read(folder)
    state, code = folder / "state", -1
    while code < 0:
        with Path(job["folder"], job["log"]).open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", job["command"]],
                cwd=job["folder"],
                env={**os.environ, "SLURM_JOB_ID": number},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with (folder / "started").open("a") as started:
            started.write(f"{process.pid}\n")
        state.write_text("RUNNING")
        code = process.wait()
        if state.read_text() == "CANCELLED":
            return
        if "--requeue" not in job["words"]:
            break
    state.write_text("NODE_FAIL" if code < 0 else "FAILED" if code else "COMPLETED")


def squeue(queue: Path, *words: str) -> None:
    """Number and state of the jobs of a name."""
    for folder in queue.iterdir():
        job = _read(folder)
        if job["name"] == words[words.index("--name") + 1]:
            sys.stdout.write(f"{folder.name}|{job['state']}\n")


def sacct(queue: Path, *words: str) -> None:
    """As squeue; asked for an account, none."""
    if "--name" in words:
        squeue(queue, *words)
    else:
        sys.stdout.write("none\n")


def sinfo(_queue: Path, *_words: str) -> None:
    """The partitions, of which the one with a star is the default."""
    sys.stdout.write("here*\n")


def scancel(queue: Path, *words: str) -> None:
    """End jobs."""
    for number in filter(str.isdigit, words):
        (queue / number / "state").write_text("CANCELLED")
        os.killpg(_read(queue / number)["processes"][-1], signal.SIGTERM)


def srun(_queue: Path, *words: str) -> None:
    """Run the step of a job: what stands after the options."""
    step = next(place for place, word in enumerate(words) if not word.startswith("-"))
    os.execvp(words[step], words[step:])


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    globals()[command](Path(os.environ[_HOME]), *rest)
