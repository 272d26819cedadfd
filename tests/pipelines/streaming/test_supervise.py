import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headrace.connectors.stream_ledger import ReaderTotals, StreamTotals
from headrace.connectors.stream_output import JobRecord, StreamOutput
from headrace.pipelines.streaming import supervise
from headrace.pipelines.streaming.seed import Seed
from headrace.pipelines.streaming.start import FINISHED
from headrace.pipelines.streaming.stream_progress import StreamProgress
from headrace.pipelines.streaming.stream_task import DRAIN, StreamTask
from headrace.pipelines.streaming.supervise import RESTARTS, Supervisor
from headrace.schemas.errors import HeadraceError, UntrustedRunError
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import NOW, make_task

Look = Callable[["World"], None]
WINDOWS = 1_000
"""As many shards of window tables as any task has."""


def totals(commits: int, *readers: tuple[int, bool], **more: Any) -> StreamTotals:
    """A ledger after so many commits; of each reader the polls done and whether it has ended. The windows end with all of them."""
    numbered = {number: ReaderTotals(*reader) for number, reader in enumerate(readers)}
    at_end = sum(final for _, final in readers)
    ended = WINDOWS if readers and at_end == len(readers) else 0
    return StreamTotals(
        commits=commits,
        readers=numbered,
        readers_at_end=at_end,
        **{"windows_ended": ended, **more},
    )


@dataclass
class World:
    """A runner and the ledger it writes; every time the supervisor sleeps, the next thing happens."""

    looks: list[Look]
    ledger: StreamTotals = field(default_factory=StreamTotals)
    point: str | None = None
    reason: str | None = None
    wrong: str | None = None
    log: list[str] = field(default_factory=list)
    now: float = 0.0
    stop_event: threading.Event = field(default_factory=threading.Event)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.looks, "the supervisor waits for ever"
        self.looks.pop(0)(self)

    def recover(self, name: str, state: str | None) -> str | None:
        return None

    def start(self, name: str, restore: str | None) -> None:
        self.log.append(f"start {restore}")
        self.reason = None

    def ended(self) -> str | None:
        return self.reason

    def alarm(self) -> str | None:
        return self.wrong

    def restore_point(self) -> str | None:
        return self.point

    def stop(self) -> str | None:
        self.log.append("stop")
        return "savepoint" if self.point else None

    def cancel(self) -> None:
        self.log.append("cancel")


def show(ledger: StreamTotals) -> Look:
    return lambda world: setattr(world, "ledger", ledger)


def fail(ledger: StreamTotals | None = None) -> Look:
    def happen(world: World) -> None:
        world.reason = "the job is FAILED: java.lang.Exception: x"
        world.ledger = ledger or world.ledger

    return happen


def nothing(world: World) -> None: ...


class Case:
    """A supervisor over a world."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, task: StreamTask, world: World) -> None:
        self.task, self.world = task, world
        self.record = JobRecord(task.job, "", "", {}, {})
        self.output = StreamOutput(Path(task.output), [self.record])
        self.shown: list[StreamProgress] = []
        monkeypatch.setattr(supervise.time, "sleep", world.sleep)
        monkeypatch.setattr(supervise.time, "monotonic", lambda: world.now)
        monkeypatch.setattr(supervise, "read_stream_ledger", lambda out, positions: world.ledger)
        self.supervisor = Supervisor(
            world,
            task,
            self.record,
            self.output,
            stop=world.stop_event,
            on_progress=self.shown.append,
            clock=lambda: world.now,
        )

    def run(self, restore: str | None = None) -> None:
        self.supervisor.run(restore)


@pytest.fixture
def make(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    def case(*looks: Look, readers: int = 1, until: bool = True, **changes: Any) -> Case:
        source = LineSource(str(tmp_path / "x"), NOW)
        more = {} if until else {"until_us": None}
        task = make_task(tmp_path / "out", source, key, readers=readers, **more, **changes)
        return Case(monkeypatch, task, World(list(looks)))

    return case


def test_it_ends_once_all_readers_have_ended_and_all_rows_are_committed(make: Callable[..., Case]) -> None:
    case = make(
        show(totals(1, (3, True), (2, False))),
        show(totals(2, (3, True), (3, True), open_polls=1)),
        show(totals(3, (3, True), (3, True))),
        readers=2,
    )
    case.run()
    assert case.world.log == ["start None", "stop"] and not case.world.looks
    assert [p.phase for p in case.shown] == ["starting", "running", "running", "running", "running"]
    assert case.record.state is None and case.supervisor.restarts == 0


def test_a_failed_job_goes_on_from_the_last_checkpoint(make: Callable[..., Case]) -> None:
    case = make(show(totals(1, (1, False))), fail(), nothing, show(totals(2, (2, True))))
    case.world.point = "chk-7"
    case.run("chk-1")
    assert case.world.log == ["start chk-1", "start chk-7", "stop"]
    assert case.supervisor.restarts == 1
    assert case.record.state == "savepoint"
    assert "restarting" in [p.phase for p in case.shown]


def test_a_job_that_failed_after_its_last_commit_is_over(make: Callable[..., Case]) -> None:
    """The last commit came between two looks, and nothing is left to commit for the restarted job."""
    case = make(fail(totals(5, (3, True))), nothing)
    case.world.point = "chk-7"
    case.run()
    assert case.world.log == ["start None", "stop"]


def test_it_gives_up_a_job_that_fails_without_progress(make: Callable[..., Case]) -> None:
    looks = [look for _ in range(RESTARTS) for look in (fail(), nothing)]
    case = make(*looks)
    case.world.point = "chk-1"
    with pytest.raises(
        HeadraceError, match=r"^the job has ended: .*What is committed is whole; the same command"
    ):
        case.run()
    assert case.supervisor.restarts == RESTARTS - 1
    assert case.world.log[-1] == "cancel" and case.record.state == "chk-1"


def test_commits_between_failures_are_progress(make: Callable[..., Case]) -> None:
    looks: list[Look] = []
    for commits in range(1, 2 * RESTARTS):
        looks += [fail(totals(commits, (commits, False))), nothing]
    case = make(*looks, show(totals(99, (99, True))))
    case.world.point = "chk-1"
    case.run()
    assert case.supervisor.restarts == 2 * RESTARTS - 1


def test_without_a_checkpoint_a_failure_is_the_end(make: Callable[..., Case]) -> None:
    case = make(fail())
    with pytest.raises(HeadraceError, match="the job has ended"):
        case.run()
    assert case.world.log == ["start None", "cancel"]


def test_stop_asks_the_readers_to_drain(make: Callable[..., Case]) -> None:
    asked: list[str | None] = []
    case = make(
        show(totals(1, (1, False))),
        lambda world: world.stop_event.set(),
        lambda world: asked.append(case.task.control.asked()),
        show(totals(2, (2, True))),
        until=False,
    )
    case.run()
    assert asked == [DRAIN] and case.world.log == ["start None", "stop"]
    assert case.shown[-1].phase == "draining"


def test_a_drain_that_takes_too_long_is_told(make: Callable[..., Case]) -> None:
    def later(world: World) -> None:
        world.now += 400

    case = make(lambda world: world.stop_event.set(), nothing, later, nothing, until=False)
    with pytest.raises(UntrustedRunError, match="not committed 300 s after the readers were told to stop"):
        case.run()
    assert case.world.log == ["start None", "cancel"]


def test_a_ledger_without_a_known_fault_tells_its_numbers(make: Callable[..., Case]) -> None:
    case = make(show(totals(1, (1, False), balanced=False)))
    with pytest.raises(
        UntrustedRunError, match=r"does not balance: rows in [\d,]+ ≠ accepted [\d,]+ \+ rejected"
    ):
        case.run()


def test_a_ledger_that_does_not_balance_cancels_the_job(make: Callable[..., Case]) -> None:
    case = make(show(totals(1, (1, False), balanced=False, fault="entries number 3: 2 rows too many")))
    with pytest.raises(UntrustedRunError, match="does not balance: entries number 3: 2 rows too many"):
        case.run()
    assert case.world.log == ["start None", "cancel"]


def test_an_alarm_is_logged_now_and_then(make: Callable[..., Case], caplog: pytest.LogCaptureFixture) -> None:
    def alarm(text: str | None) -> Look:
        return lambda world: setattr(world, "wrong", text)

    case = make(
        alarm("no checkpoint"),
        nothing,
        alarm(None),
        alarm("no checkpoint"),
        lambda world: setattr(world, "now", world.now + supervise.ALARM_SECONDS),
        show(totals(1, (1, True))),
    )
    with caplog.at_level(logging.ERROR):
        case.run()
    assert [r.getMessage() for r in caplog.records] == ["no checkpoint", "no checkpoint"]


@pytest.mark.parametrize("until", [True, False])
def test_a_job_that_was_drained_before_is_not_taken_for_finished(
    until: bool, make: Callable[..., Case]
) -> None:
    """Results of the last run that are committed only now are no end of this one."""
    drained = totals(4, (7, True))
    looks = [show(totals(5, (7, True))), show(totals(6, (8, False))), show(totals(7, (9, True)))]
    if not until:
        looks[2:] = [lambda world: world.stop_event.set(), nothing, show(totals(7, (9, True)))]
    case = make(*looks, until=until)
    case.world.ledger = drained
    case.run("savepoint")
    assert not case.world.looks and case.world.log == ["start savepoint", "stop"]


def test_what_was_asked_of_the_run_before_is_taken_back(make: Callable[..., Case]) -> None:
    case = make(show(totals(1, (1, True))))
    case.task.control.ask(DRAIN)
    case.run()
    assert case.task.control.asked() is None


def test_the_other_readers_read_once_the_seed_has_arrived(make: Callable[..., Case]) -> None:
    seeded: list[bool] = []

    def look(ledger: StreamTotals) -> Look:
        def happen(world: World) -> None:
            seeded.append(case.task.control.seeded)
            world.ledger = ledger

        return happen

    case = make(
        look(totals(1, (2, False))),
        lambda world: case.task.control.tell_seed(4),
        look(totals(2, (3, False))),
        look(totals(3, (4, False))),
        nothing,
        look(totals(4, (9, True), (1, True))),
        readers=2,
        seed=Seed(0, 0, {}),
    )
    case.run()
    assert seeded == [False, False, False, True]


def test_progress_is_what_the_ledger_says(make: Callable[..., Case]) -> None:
    def rows(commits: int, rows_in: int) -> Look:
        return show(totals(commits, (commits, False), rows_in=rows_in, rejected={"a": {"b": 3}}, behind=9))

    case = make(rows(1, 1000), rows(2, 3000), show(totals(3, (3, True), rows_in=3000)))
    case.run()
    second, third = case.shown[1], case.shown[2]
    assert (second.rows, second.rejected, second.behind) == (1000, 3, 9)
    assert third.rows_per_second == pytest.approx(3000.0)
    assert third.committed_seconds is None and third.watermark_delay_seconds is None


def test_at_the_end_of_a_stream_it_waits_for_the_last_windows(make: Callable[..., Case]) -> None:
    case = make(
        show(totals(1, (1, True), windows_ended=0)),
        show(totals(2, (1, True), windows_ended=1)),
        show(totals(3, (1, True))),
        until=True,
    )
    case.run()
    assert not case.world.looks and case.world.log == ["start None", "stop"]
    assert case.record.layout == {FINISHED: True}


def test_a_drained_stream_does_not_wait_for_windows_and_may_go_on(make: Callable[..., Case]) -> None:
    case = make(
        lambda world: world.stop_event.set(), show(totals(1, (1, True), windows_ended=0)), until=False
    )
    case.run()
    assert case.record.layout == {}
