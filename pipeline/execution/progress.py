"""Progress of long steps, on stderr: a bar on a terminal, else a line now and then.

Invariant: nothing here writes to stdout, which belongs to `--json`. Rates count only what was done since the
start, so resumed work distorts neither rate nor remaining time; the remaining time follows the last minute. Rejected:
rich's own speed columns, which the quiet lines could not share.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from schemas.secrets import hide_secrets
from schemas.visible import visible

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_SAMPLES = 1.0
_SECONDS_OF_WINDOW = 60.0
"""Past from which the time left is reckoned."""


def note(line: str) -> None:
    """Say something beside results and progress: what a source was found to be, a warning."""
    print(visible(hide_secrets(line)), file=sys.stderr, flush=True)


class Progress:
    """One long step, used as a context manager around it.

    Args:
        description: what the step does, such as "shard train".
        total: units of work in all, those done in an earlier attempt included.
        unit: what is counted, in the plural.
        done: units that an earlier attempt has done.
        rate_unit: what the rate counts where that is not `unit`; `advance` is then told how much `work` it was.
        clock: seconds from any beginning, never going back.
        stream: where to write; stderr by default.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int,
        unit: str,
        done: int = 0,
        rate_unit: str = "",
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self._description, self._total, self._unit, self._rate_unit = description, total, unit, rate_unit or unit
        self._done = self._resumed = done
        self._work = 0
        self._note = self._ending = ""
        self._clock = clock
        self._begin = self._advanced = self._written = clock()
        self._window = deque([(self._begin, done)])
        self._stream = stream or sys.stderr
        self._bar = self._new_bar()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        whole = kind is None and self._done >= self._total
        self._ending = f"{'done in' if whole else 'stopped after'} {duration(self._clock() - self._begin)}"
        if self._bar:
            self._bar.stop()
        else:
            self._write_line()

    def advance(self, count: int = 1, *, work: int | None = None) -> None:
        """Count `count` more units as done, worth `work` of the rate's unit (`count` where not given)."""
        self._done += count
        self._work += count if work is None else work
        self._advanced = self._clock()
        self._remember()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif self._advanced - self._written >= _SECONDS_BETWEEN_LINES:
            self._write_line()

    def update(self, done: int) -> None:
        """Set the number of units done, those of earlier attempts included."""
        self.advance(done - self._done)

    def note(self, text: str) -> None:
        """Show a short text after the rest from now on, such as "loss 2.31"."""
        self._note = text

    def _new_bar(self) -> Bar | None:
        console = Console(file=self._stream)
        if not (self._stream.isatty() and console.is_interactive):
            return None
        columns = (
            _Words(lambda: self._description),
            BarColumn(20),
            TimeElapsedColumn(Column(min_width=7)),
            _Words(self._status),
        )
        bar = Bar(*columns, console=console, get_time=self._clock, redirect_stdout=False)
        bar.add_task(self._description, total=self._total, completed=self._done)
        return bar

    def _write_line(self) -> None:
        self._written = self._clock()
        print(f"{self._description}  {self._status()}", file=self._stream, flush=True)

    def _status(self) -> str:
        counted = f"{self._done:,}/{self._total:,} {self._unit}"
        return "  ".join(filter(None, (counted, self._rate(), self._ending or self._left(), self._note)))

    def _rate(self) -> str:
        seconds = self._advanced - self._begin
        return rate(self._work / seconds, self._rate_unit) if self._work and seconds > 0 else ""

    def _remember(self) -> None:
        """Keep what was done when, a second apart: of the last minute, and of as long as the start had taken.

        So the start (processes, compiling, first reads) counts only until as much time has passed after it.
        """
        if len(self._window) < 2 or self._advanced - self._window[-1][0] >= _SECONDS_BETWEEN_SAMPLES:
            self._window.append((self._advanced, self._done))
        while len(self._window) > 2 and self._advanced - self._window[1][0] >= self._span():
            self._window.popleft()

    def _span(self) -> float:
        """How much of the past must remain for the oldest of it to be forgotten."""
        start = self._window[0][0] == self._begin
        return self._window[1][0] - self._begin if start else _SECONDS_OF_WINDOW

    def _left(self) -> str:
        since, done = self._window[0]
        if self._done <= max(self._resumed, done):
            return ""
        seconds_a_unit = (self._advanced - since) / (self._done - done)
        seconds = (self._total - self._done) * seconds_a_unit - (self._clock() - self._advanced)
        return f"{duration(max(seconds, 0))} left"


class _Words(ProgressColumn):
    """A column of the bar with a function's text at each redraw."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words())


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter to a person: "42 s", "2 min", "1 h 10 min", "3 d 4 h"."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def rate(per_second: float, unit: str) -> str:
    """A rate in the largest of second, minute and hour that keeps it at 1 or more: "1,234 views/s", "2.5 parts/min"."""
    spans = ((1, "s"), (60, "min"), (3600, "h"))
    factor, span = next((one for one in spans if per_second * one[0] >= 1), spans[-1])
    value = per_second * factor
    return f"{value:,.0f} {unit}/{span}" if value >= 10 else f"{value:.1f} {unit}/{span}"
