"""Progress: quiet lines, an honest rate, remaining time in words, and stdout left alone."""

import io

import pytest

from pipeline.execution.progress import Progress, duration, rate


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stream():
    return io.StringIO()


def test_a_line_holds_count_rate_remaining_time_and_note(clock, stream):
    with Progress("label", total=40, unit="parts", rate_unit="views", clock=clock, stream=stream) as progress:
        progress.note("agreement 88%")
        clock.wait(60)
        progress.advance(12, work=60 * 1234)
        assert stream.getvalue() == "label  12/40 parts  1,234 views/s  2 min left  agreement 88%\n"


def test_lines_come_at_most_every_ten_seconds_and_once_at_the_end(clock, stream):
    with Progress("train", total=100, unit="steps", clock=clock, stream=stream) as progress:
        for _ in range(100):
            clock.wait(0.25)
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["40/100", "80/100", "100/100"]
    assert lines[-1] == "train  100/100 steps  4.0 steps/s  done in 25 s"


def test_a_short_step_writes_its_last_line_alone(clock, stream):
    with Progress("shard train", total=5, unit="parts", clock=clock, stream=stream) as progress:
        for _ in range(5):
            clock.wait(0.25)
            progress.advance()
    assert stream.getvalue() == "shard train  5/5 parts  4.0 parts/s  done in 1 s\n"


def test_resumed_work_counts_as_done_but_neither_in_rate_nor_in_remaining_time(clock, stream):
    with Progress("label", total=1200, unit="parts", done=1000, clock=clock, stream=stream) as progress:
        clock.wait(10)
        progress.advance(20)
    assert stream.getvalue().splitlines()[0] == "label  1,020/1,200 parts  2.0 parts/s  2 min left"


def test_update_sets_the_absolute_count(clock, stream):
    with Progress("train", total=100, unit="steps", done=30, clock=clock, stream=stream) as progress:
        clock.wait(20)
        progress.update(50)
    assert stream.getvalue().splitlines()[0] == "train  50/100 steps  1.0 steps/s  50 s left"


def test_a_step_without_anything_left_to_do_says_so_without_a_rate(clock, stream):
    with Progress("shard", total=5, unit="parts", done=5, clock=clock, stream=stream):
        pass
    assert stream.getvalue() == "shard  5/5 parts  done in 0 s\n"


@pytest.mark.parametrize("done", [2, 5])
def test_a_failed_step_says_how_far_it_came_and_lets_the_error_through(clock, stream, done):
    with (
        pytest.raises(ValueError, match="broken"),
        Progress("shard", total=5, unit="parts", clock=clock, stream=stream) as progress,
    ):
        clock.wait(4)
        progress.advance(done)
        raise ValueError("broken")
    assert stream.getvalue() == f"shard  {done}/5 parts  {rate(done / 4, 'parts')}  stopped after 4 s\n"


def test_everything_goes_to_stderr(capsys):
    with Progress("shard", total=1, unit="parts") as progress:
        progress.advance()
    written = capsys.readouterr()
    assert written.out == ""
    assert "1/1 parts" in written.err


def test_a_terminal_gets_a_bar_with_all_there_is_to_know(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    with Progress("label [x]", total=40, unit="parts", done=10, clock=clock, stream=terminal) as progress:
        clock.wait(65)
        progress.note("agreement 88%")
        progress.advance(15)
    last = terminal.getvalue().split("\r")[-1]
    for part in ("label [x]", "━", "25/40 parts", "14 parts/min", "0:01:05", "stopped after 1 min", "agreement 88%"):
        assert part in last


def test_between_two_parts_the_remaining_time_runs_down_to_0_and_the_rate_stands_still(clock, stream):
    with Progress("label", total=3, unit="parts", clock=clock, stream=stream) as progress:
        clock.wait(60)
        progress.advance()
        seen = []
        for _ in range(4):
            seen.append(progress._status())  # what each redraw of the bar asks for
            clock.wait(40)
    assert seen == [f"1/3 parts  1.0 parts/min  {left} left" for left in ("2 min", "1 min", "40 s", "0 s")]


def test_while_a_bar_is_shown_stdout_is_still_stdout(clock, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Progress("shard", total=1, unit="parts", clock=clock, stream=terminal):
        print('{"stage": "shard"}')
    assert capsys.readouterr().out == '{"stage": "shard"}\n'
    assert "stage" not in terminal.getvalue()


def test_a_dumb_terminal_gets_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with Progress("shard", total=1, unit="parts", clock=clock, stream=terminal) as progress:
        clock.wait(1)
        progress.advance()
    assert terminal.getvalue() == "shard  1/1 parts  1.0 parts/s  done in 1 s\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"), (42.4, "42 s"), (59.7, "1 min"), (60, "1 min"), (150, "2 min"), (3590, "1 h"), (3600, "1 h"),
        (4200, "1 h 10 min"), (86390, "1 d"), (90000, "1 d 1 h"), (3 * 86400, "3 d"),
    ],
)  # fmt: skip
def test_a_duration_is_said_in_the_units_that_matter(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("per_second", "words"),
    [
        (1234.4, "1,234 views/s"),
        (2.53, "2.5 views/s"),
        (0.5, "30 views/min"),
        (0.001, "3.6 views/h"),
        (0, "0.0 views/h"),
    ],
)
def test_a_rate_is_said_per_second_minute_or_hour(per_second, words):
    assert rate(per_second, "views") == words
