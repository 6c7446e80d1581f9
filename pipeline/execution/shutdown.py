"""SIGTERM and Ctrl-C: the first requests an orderly shutdown; the second, or the end of the grace period, ends at once.

A cluster's scheduler sends SIGTERM and kills some time later; so running work gets that time and no more.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulShutdown:
    """Whether the user wants an end; as a context manager, it listens to both signals.

    At its end it raises KeyboardInterrupt if it received a signal, so that nothing else starts.

    Args:
        grace_seconds: from the first signal until KeyboardInterrupt is raised in the midst.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.requested = self._aborted = False
        self._grace = grace_seconds
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._listening = threading.current_thread() is threading.main_thread()  # others are not allowed to
        if self._listening:
            self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()
        if self._listening:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if self.requested and not kind:
            raise KeyboardInterrupt

    def abort(self) -> None:
        """Raise KeyboardInterrupt in the main thread now: there is nothing left that could be finished."""
        self._aborted = True
        interrupt_main()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self._aborted:
            raise KeyboardInterrupt
        self.requested = True
        self._timer = threading.Timer(self._grace, interrupt_main)
        self._timer.daemon = True
        self._timer.start()
        print(
            f"stopping: what is under way is finished within {self._grace:g} s (cluster.grace_seconds); "
            "again ends at once",
            file=sys.stderr,
            flush=True,
        )


def interrupt_main() -> None:
    """Send the main thread a real signal, which also ends its waiting inside C."""
    if ident := threading.main_thread().ident:
        signal.pthread_kill(ident, signal.SIGINT)


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Keep the handlers of SIGINT and SIGTERM: Ray's own know no exit code 3, and end it, or its workers, midway.

    `signal.signal` itself is replaced for the time, as there is no other way: Ray sets its handlers within `ray.init`
    and `fit`, has no option against it, and a signal may come before they could be put back. Everybody else's signals
    pass through.
    """
    set_handler = signal.signal

    def keep(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in SIGNALS else set_handler(number, handler)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler
        if threading.current_thread() is threading.main_thread():
            signal.alarm(0)  # Ray has a handler in C besides, which also sets one that aborts the process
            for number in SIGNALS:
                signal.signal(number, signal.getsignal(number))
