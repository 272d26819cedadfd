import io
import re

import pytest

from headrace.pipelines.progress import Progress, Reporter, clock_time


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def progress(
    seconds: float, *, rows: int = 0, read: int = 0, total: int = 1000, phase: str = "reading"
) -> Progress:
    return Progress(rows, rows // 10, read, total, seconds, phase)


def plain_text(output: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_times_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_rates_and_times_follow_from_the_counts() -> None:
    half = progress(30, rows=12_000, read=500)
    assert (half.share, half.rows_per_second, half.remaining_seconds) == (0.5, 400.0, 30.0)
    assert half.describe() == [
        "reading", "50% of input", "12,000 rows", "400 rows/s", "1,200 rejected", "0:30 elapsed", "about 0:30 left",
    ]  # fmt: skip


def test_nothing_is_estimated_without_a_ground() -> None:
    assert progress(0).rows_per_second is None
    assert progress(5, rows=10, read=19).remaining_seconds is None
    assert progress(5, rows=10, read=1000, phase="writing").remaining_seconds is None
    assert progress(5, rows=10, read=1200).share == 1.0
    unknown = progress(5, rows=10, total=0)
    assert unknown.share is None
    assert unknown.describe() == ["reading", "10 rows", "2 rows/s", "1 rejected", "0:05 elapsed"]


def test_without_a_terminal_a_line_comes_every_five_seconds() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with Reporter(stream, live=False, clock=clock) as report:
        for second in range(1, 13):
            clock.now += 1
            report(progress(second, rows=second * 1000, read=second * 50))
    assert stream.getvalue().splitlines() == [
        "reading, 25% of input, 5,000 rows, 1,000 rows/s, 500 rejected, 0:05 elapsed, about 0:15 left",
        "reading, 50% of input, 10,000 rows, 1,000 rows/s, 1,000 rejected, 0:10 elapsed, about 0:10 left",
    ]


def test_a_short_run_prints_no_line() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with Reporter(stream, live=False, clock=clock) as report:
        clock.now += 4.9
        report(progress(4.9, rows=1))
    assert stream.getvalue() == ""


def test_on_a_terminal_one_line_is_redrawn_and_leaves_no_trace() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with Reporter(stream, live=True, clock=clock, refresh=False, width=90) as report:
        report(progress(10, rows=20_000, read=250))
        clock.now += 0.05
        report(progress(10, rows=20_001, read=250))
        clock.now += 0.05
        report(progress(10.1, rows=30_000, read=1000, phase="writing"))
    output = stream.getvalue()
    text = plain_text(output)
    assert "━━━━━" in text
    assert "reading · 25% · 20,000 rows · 2,000/s · 2,000 rejected · 0:10 · 0:30 left" in text
    assert "20,001" not in text
    assert "writing · 100% · 30,000 rows" in text
    assert output.endswith("\x1b[2K")


def test_the_time_goes_on_between_two_reports() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with Reporter(stream, live=True, clock=clock, refresh=False, width=90) as report:
        report(progress(10, rows=10, total=0))
        clock.now += 65
    assert "· 0:10" in plain_text(stream.getvalue())
    assert "· 1:15" in plain_text(stream.getvalue())


def test_a_narrow_terminal_cuts_the_line() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with Reporter(stream, live=True, clock=clock, refresh=False, width=40) as report:
        report(progress(10, rows=20_000, read=250))
    lines = [
        line for line in plain_text(stream.getvalue()).replace("\r", "\n").splitlines() if "reading" in line
    ]
    assert lines and all(len(line) <= 40 for line in lines)


def test_before_the_first_report_it_says_that_it_starts() -> None:
    stream = io.StringIO()
    with Reporter(stream, live=True, refresh=False, width=80):
        pass
    assert "starting" in plain_text(stream.getvalue())
