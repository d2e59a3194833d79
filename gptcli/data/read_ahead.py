"""Items that are read in a thread: what comes next is made ready while the last is worked on.

Most inputs wait to be read. A live one, such as a terminal or a pipe, lets its reader wait; `Arrivals`
says when, so that what is there can be dealt with.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import takewhile
from typing import Generic, Self, TypeVar

T = TypeVar("T")
U = TypeVar("U")

# A pause of that length is one: what is piped from a file comes faster, what is typed never does.
PAUSE_SECONDS = 0.05


class Arrivals(Generic[T]):
    """The items of an iterable that may let one wait for any time. Use as a context manager.

    Iterating yields them, and None once for each pause in which the next one is not there yet. No more
    than one is taken before it is asked for. It ends when closed, from whatever thread.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._changed = threading.Condition()
        self._arrived: deque[T] = deque()
        self._is_over = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        # A daemon: nobody can end a read that waits for a terminal, and Python should not wait for it.
        threading.Thread(target=self._read, name="reading", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def __iter__(self) -> Iterator[T | None]:
        is_pause_told = True  # Before the first item, there is nothing to deal with.
        while True:
            with self._changed:
                seconds = None if is_pause_told else PAUSE_SECONDS
                is_pause = not self._changed.wait_for(
                    lambda: bool(self._arrived) or self._is_over, seconds
                )
                item = self._arrived.popleft() if self._arrived else None
                self._changed.notify_all()
            if item is not None:
                yield item
            elif is_pause:
                yield None
            else:
                if self._error is not None:
                    raise self._error
                return
            is_pause_told = is_pause

    def _read(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: not self._arrived or self._is_over)
                    if self._is_over:
                        return
                    self._arrived.append(item)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def one_ahead(
    items: Iterable[T], prepared: Callable[[Iterator[T | None]], Iterator[U]], *, is_live: bool
) -> Generator[U]:
    """Yield what `prepared` makes of the items; the next one is made while the last is worked on.

    prepared: runs in a thread, and gets None among the items where a live input makes a pause. An error
    there comes when what was made before it has been yielded.
    """
    is_closed = threading.Event()
    with ThreadPoolExecutor(1, "preparing") as thread, ExitStack() as stack:
        stack.callback(is_closed.set)
        arriving: Iterable[T | None] = stack.enter_context(Arrivals(items)) if is_live else items
        # The thread is waited for, which should not take long after Ctrl-C.
        made = prepared(takewhile(lambda _: not is_closed.is_set(), arriving))
        upcoming = thread.submit(next, made, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, made, None)
            yield item
