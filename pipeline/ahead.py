"""Work done in threads ahead of whoever reads its results, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 64


def map_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[Result]:
    """work(item) for every item, in order, with at most `ahead` results begun and not yet read.

    Items are drawn in the reader's thread, so that they may come from another such iterator; an
    error of `work` is raised in the place of its result. With `ahead` 0 there is no thread.
    """
    if not ahead:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor() as threads:
        try:
            for item in items:
                waiting.append(threads.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # of a reader who has stopped nobody waits for what is not begun
            for future in waiting:
                future.cancel()
