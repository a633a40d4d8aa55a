"""A run on disk: what it was asked, what it has seen, its weights, its log."""

from lmm.run.folder import (
    Run,
    begin_run,
    create_run,
    open_run,
    run_lock,
    start_run,
    write_json,
)

__all__ = [
    "Run",
    "begin_run",
    "create_run",
    "open_run",
    "run_lock",
    "start_run",
    "write_json",
]
