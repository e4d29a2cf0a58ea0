"""Values made ahead by a thread. Knows nothing of batches or devices."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], steps: Iterable[int], *, ahead: int = 2) -> Generator[T]:
    """`make(step)` of every step in order, each made by one thread while up to `ahead` wait to be taken.

    An error of `make` surfaces where its value would have. Close the generator to stop the thread early.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
