"""Snakemake at work on a plan: one at a time in a study's folder, watched, and what has failed."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lmm.run import open_run, write_json
from lmm.study.grid import workflow_missing
from lmm.study.plan import Plan, PlannedRun, write_plan
from pipeline.errors import ArtefactError, UsageError

SNAKEFILE = Path(__file__).parent / "Snakefile"
LOG_FILE = "logs/snakemake.log"
POLL_S = 0.5
PATIENCE_S = 10  # that jobs have to end when they are interrupted


@dataclass(frozen=True)
class Resources:
    """What a study may use at a time.

    jobs     runs side by side
    threads  of each; on a CPU two runs of one thread do more steps a second than one run of two
    devices  for `--device`, given to the runs in turns
    """

    jobs: int
    threads: int = 1
    devices: Sequence[str] = ("auto",)


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    done, runs      runs finished and scored, and all
    epochs, of      epochs trained, and of all runs; of one that ends with its seconds, its own
    at_work         by run that is in training: epochs trained, and its all
    """

    done: int
    runs: int
    epochs: int
    of: int
    at_work: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Outcome:
    """What became of a study's runs.

    trained  those that were trained now
    failed   by name what went wrong, in a line
    """

    trained: list[str]
    failed: dict[str, str]


Watcher = Callable[[Standing], None]


def run_study(
    plan: Plan, resources: Resources, options: Sequence[str] = (), watch: Watcher | None = None
) -> Outcome:
    """Train and score what a plan has to be trained and scored; what is done is left as it is.

    A run that fails is no reason for the others to stop.

    options  for Snakemake, which come after ours
    raises   UsageError without Snakemake, or when it refuses its options; ArtefactError when
             another study is at work in the folder
    """
    if importlib.util.find_spec("snakemake") is None:
        raise workflow_missing("Snakemake")
    with _alone(plan.out) as descriptor:
        write_plan(plan)
        before = {run.name for run in plan.runs if plan.trained(run)}
        if not all(plan.done(run) for run in plan.runs):
            configuration = _configure(plan, resources)
            command = _command(plan, configuration, resources, options)
            code = _watched(plan, command, descriptor, watch)
            _require_begun(plan, code)
    finished = Plan(plan.out, plan.grid, plan.runs, [])
    trained = [one.name for one in plan.runs if finished.trained(one) and one.name not in before]
    failed = [one for one in plan.runs if not finished.done(one)]
    return Outcome(trained, {one.name: _reason(plan.out, one) for one in failed})


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Hold a study's folder; the descriptor of the lock, which Snakemake holds as well.

    The operating system frees it when both are dead, and Snakemake's own locks, which a killed
    process leaves behind, are not needed.
    """
    out.mkdir(parents=True, exist_ok=True)
    descriptors: list[int] = []
    file = out / "study.lock"
    lock = FileLock(file, timeout=0, fallback_to_soft=False, on_acquired=descriptors.append)
    try:
        lock.acquire()
    except Timeout as error:
        raise ArtefactError(
            f"a study is at work in {out} ({file.read_text()})", "wait for it, or end it"
        ) from error
    os.ftruncate(descriptors[0], 0)
    os.write(descriptors[0], f"process {os.getpid()} on {os.uname().nodename}".encode())
    try:
        yield descriptors[0]
    finally:
        lock.release()


def _configure(plan: Plan, resources: Resources) -> Path:
    """The plan as Snakemake's configuration, with what the runs may use."""
    devices = resources.devices
    runs = {
        run.name: {**asdict(run), "device": devices[place % len(devices)]}
        for place, run in enumerate(plan.runs)
    }
    file = plan.out / "logs" / "snakemake.json"
    file.parent.mkdir(exist_ok=True)
    students = {run.student: asdict(run) for run in plan.runs if run.student}
    shared = {"threads": resources.threads, "device": devices[0]}
    write_json(file, {"runs": runs, "students": students, **shared})
    return file


def _command(
    plan: Plan, configuration: Path, resources: Resources, options: Sequence[str]
) -> list[str]:
    """Snakemake, by its command line: what it has within is its own."""
    here = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    here += ["--directory", str(plan.out), "--configfile", str(configuration.resolve())]
    # Files are put in place as a whole, so that none is incomplete; see the Snakefile.
    here += ["--keep-going", "--nolock", "--ignore-incomplete", "--rerun-triggers", "mtime"]
    again = [run.summary_file for run in plan.runs if run.name in plan.replaced]
    here += ["--forcerun", *again] if again else []
    # Last of ours: what takes any number of words would take theirs.
    return [*here, "--cores", str(resources.jobs * resources.threads), *options]


def _watched(plan: Plan, command: Sequence[str], descriptor: int, watch: Watcher | None) -> int:
    """Exit code of Snakemake; its words go to its log."""
    started = time.time()
    with (plan.out / LOG_FILE).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(descriptor,),
            process_group=0,  # it and its jobs, to be ended together
        )
        os.write(descriptor, f", process group {process.pid}".encode())
        try:
            while process.poll() is None:
                if watch:
                    watch(_standing(plan, started))
                time.sleep(POLL_S)
        finally:
            _end(process)
    if watch:
        watch(_standing(plan, started))
    return process.returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    """See that Snakemake and its jobs end, a training with its checkpoint if it can."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)


def _standing(plan: Plan, started: float) -> Standing:
    finished = Plan(plan.out, plan.grid, plan.runs, [])
    epochs, of, at_work = 0, 0, {}
    for run in plan.runs:
        log = plan.out / "runs" / run.name / "log.jsonl"
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        in_all = run.epochs or _settled(plan, run) or lines
        epochs += in_all if finished.trained(run) else lines
        of += in_all
        if lines and not finished.trained(run) and log.stat().st_mtime >= started:
            at_work[run.name] = (lines, in_all)
    done = sum(finished.done(run) for run in plan.runs)
    return Standing(done, len(plan.runs), epochs, of, at_work)


def _settled(plan: Plan, run: PlannedRun) -> int | None:
    """Epochs that a run in training has found to fit into its seconds."""
    try:
        description = open_run(plan.out / "runs" / run.name).description
    except ArtefactError:
        return None
    epochs: int = description["settings"]["epochs"]
    return epochs


def _require_begun(plan: Plan, code: int) -> None:
    """Raise UsageError when Snakemake ended before any job began."""
    words = (plan.out / LOG_FILE).read_text(errors="replace")
    if code and not re.search(r"^(local)?rule \w+:", words, re.M):
        said = [line for line in words.splitlines() if line.strip()]
        raise UsageError(
            f"Snakemake did not begin: {' '.join(said[-3:])}",
            f"see {plan.out / LOG_FILE}, and the options after --",
        )


def _reason(out: Path, run: PlannedRun) -> str:
    """What the log of a run's last job says went wrong."""
    logs = [out / f"logs/{run.name}.log", out / f"logs/{run.name}-{run.scores}.log"]
    logs += [out / f"logs/student-{run.student}.log"] if run.student else []
    there = sorted((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime)
    for log in reversed(there):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
    return f"see {there[-1]}" if there else f"it did not begin; see {out / LOG_FILE}"
