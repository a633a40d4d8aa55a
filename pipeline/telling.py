"""What people are told of long work and long lists: progress, and the first few of many names."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]  # called with (done, in all)

SHOWN = 10


def some_of(words: Iterable[object], shown: int = SHOWN, separator: str = ", ") -> str:
    """The first few of them, and how many more there are: `a, b and 3 more`."""
    every = [str(word) for word in words]
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return separator.join(every[:shown]) + more


def ticking(progress: Progress | None, total: int) -> Callable[[int], None]:
    """What counts work done and tells `progress` of it: to be called with how much is new."""
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    return tick
