"""Taking turns: what is compared runs one after the other in rounds, so that drift cancels."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

ROUNDS = 3


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds that each way takes, the median of some rounds in which each has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(seconds_of(way))
    return {name: median(of) for name, of in seconds.items()}


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall-clock seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
