from headrace.pipelines.streaming.stream_progress import StreamProgress

RUNNING = StreamProgress(
    rows=1_234_567,
    accepted=1_200_000,
    rejected=34_567,
    rows_per_second=25_123.4,
    behind=1_000,
    watermark_delay_seconds=95.0,
    committed_seconds=3.4,
    elapsed_seconds=61.0,
    phase="running",
)
STARTING = StreamProgress(0, 0, 0, None, None, None, None, 0.0, "starting")


def test_what_is_not_known_is_left_out() -> None:
    assert STARTING.describe() == ["starting", "0 rows", "0 rejected", "0:00 elapsed"]


def test_all_that_is_known() -> None:
    assert RUNNING.describe() == [
        "running",
        "1,234,567 rows",
        "25,123 rows/s",
        "34,567 rejected",
        "lag 1,000",
        "watermark -1:35",
        "last commit 3 s ago",
        "1:01 elapsed",
    ]


def test_the_short_form_fits_into_a_terminal() -> None:
    parts = RUNNING.describe(short=True)
    assert parts[2] == "25,123/s" and parts[-2:] == ["commit 3 s", "1:01"]
    assert len(" · ".join(parts)) <= 100


def test_a_watermark_ahead_of_the_clock_is_shown_as_none_behind() -> None:
    ahead = StreamProgress(1, 1, 0, None, None, -5.0, None, 1.0, "running")
    assert "watermark -0:00" in ahead.describe()


def test_a_stream_has_no_share_done() -> None:
    assert RUNNING.share is None


def test_time_passes_between_two_looks() -> None:
    later = RUNNING.later(2.0)
    assert (later.elapsed_seconds, later.committed_seconds, later.rows) == (63.0, 5.4, 1_234_567)
    assert STARTING.later(1.0).committed_seconds is None
