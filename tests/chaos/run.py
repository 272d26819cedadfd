"""Runs a stream under faults and gives the verdict: ``python -m tests.chaos.run --seed 7 --kills 20 --rate 3000``.

Prints one line for each fault with the time that the stream took to recover: from the end of the fault (for a kill: from the
kill) until everything that was produced up to then, and something newer, is in the tables. Exits with 0 if every fault was
recovered from and the checker found nothing.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos.checker import Verdict, check
from tests.chaos.faults import TOPIC, Site
from tests.chaos.plan import KILLS, Planned, plan
from tests.chaos.producer import acknowledged_of

TARGET_SECONDS = 60.0
MOST_SECONDS = 300.0
START_SECONDS = 400.0
AFTERMATH_SECONDS = 15
"""How long a control run goes on after its last fault."""
END_SECONDS = 420.0
LOOK_SECONDS = 1.0


@dataclass
class Fault:
    """One fault that was done."""

    kind: str
    at_seconds: float
    """Since the stream was up."""
    lasted_seconds: float
    """From its begin until it was taken back; for a kill, until the process was started again."""
    recovered_seconds: float | None
    """None: not in time."""
    relaunches: int
    """How often the command ended by itself and was started again."""


@dataclass
class Report:
    """What a run has shown."""

    seed: int
    runner: str
    rate: float
    faults: list[Fault] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    started_seconds: float = 0.0
    elapsed_seconds: float = 0.0

    @property
    def sound(self) -> bool:
        return self.verdict.sound and all(fault.recovered_seconds is not None for fault in self.faults)


class Run:
    """One run.

    Args:
        site: up.
        report: to be filled.
    """

    def __init__(self, site: Site, report: Report, *, events: int = 100_000_000) -> None:
        self._site, self._report, self._events = site, report, events
        self._manifest = site.folder / "manifest.csv"
        self._began = time.monotonic()
        self._relaunches = 0

    def under(
        self, faults: list[Planned], *, most_seconds: float = MOST_SECONDS, minutes: float | None = None
    ) -> None:
        """Produces and reads under these faults, ends the stream, and checks.

        Args:
            most_seconds: for one recovery.
            minutes: no fault begins later than that.

        Raises:
            RuntimeError: the stream did not start or could not be ended, or the producer has lost records.
        """
        words = [sys.executable, "-m", "tests.chaos.producer", self._site.broker, TOPIC, str(self._manifest)]
        words += [
            "--rate",
            str(self._report.rate),
            "--seed",
            str(self._report.seed),
            "--events",
            str(self._events),
        ]
        producer = subprocess.Popen(words, start_new_session=True)
        try:
            self._site.launcher.start()
            began = time.monotonic()
            if self._reached(5000, START_SECONDS) is None:
                raise RuntimeError(
                    f"the stream gave nothing within {START_SECONDS:.0f} s; see {self._site.folder}/launcher.log"
                )
            self._report.started_seconds = time.monotonic() - began
            _say(f"first commit after {self._report.started_seconds:.0f} s")
            for planned in faults:
                if minutes is not None and time.monotonic() - self._began > minutes * 60:
                    _say("no more faults: the time is up")
                    break
                time.sleep(planned.calm_seconds)
                if not self._one(planned, most_seconds):
                    break
            producer.send_signal(signal.SIGTERM)
            if producer.wait(300):
                raise RuntimeError("the producer has records that the broker did not acknowledge")
            unfinished = self._finish()
        finally:
            producer.kill()
        self._report.verdict = check(self._site.broker, TOPIC, self._manifest, self._site.out)
        self._report.verdict.faults += unfinished
        self._report.elapsed_seconds = time.monotonic() - self._began

    def _finish(self) -> list[str]:
        """Drains the stream; returns why it can't be drained, as the output is to be looked at all the same."""
        if self._site.broken:
            time.sleep(AFTERMATH_SECONDS)
            self._site.launcher.kill()  # Its books are wrong, so it may never see the end.
            return []
        try:
            self._end()
        except RuntimeError as error:
            return [str(error)]
        return []

    def _one(self, planned: Planned, most_seconds: float) -> bool:
        relaunches, began = self._relaunches, time.monotonic()
        self._site.inject(planned.kind, planned.hold_seconds)
        lasted = time.monotonic() - began
        target = acknowledged_of(self._manifest) + 1
        took = self._reached(target, most_seconds)
        if took is not None and planned.kind.startswith("kill"):
            took += lasted
        fault = Fault(
            planned.kind,
            round(began - self._began, 1),
            round(lasted, 1),
            None if took is None else round(took, 1),
            self._relaunches - relaunches,
        )
        self._report.faults.append(fault)
        _say(_line(len(self._report.faults), fault))
        return took is not None

    def _reached(self, records: int, seconds: float) -> float | None:
        """Waits until so many records are in the tables; starts the command again if it has ended."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            totals = self._site.totals()
            if totals.rows_in - totals.in_flight >= records:
                return time.monotonic() - began
            self._keep_up()
            time.sleep(LOOK_SECONDS)
        return None

    def _keep_up(self) -> None:
        code = self._site.launcher.code
        if code is not None:
            _say(f"  the command has ended with {code}; the same again")
            self._relaunches += 1
            time.sleep(1)
            self._site.launcher.start()

    def _end(self) -> None:
        """Stops the stream and lets it read to the end, so that all windows are closed."""
        launcher = self._site.launcher
        launcher.send(signal.SIGTERM)
        if launcher.wait(END_SECONDS) is None:
            launcher.kill()
        for _ in range(3):
            launcher.start("--until", "now")
            code = launcher.wait(END_SECONDS)
            if code == 0:
                return
            _say(f"  the last run ended with {code}")
            launcher.kill()
        raise RuntimeError(f"the stream can't be ended; see {self._site.folder}/launcher.log")


def run(
    folder: Path,
    *,
    seed: int,
    kills: int,
    rate: float,
    runner: str = "flink",
    others: int | None = None,
    only: list[str] | None = None,
    disk_megabytes: int = 1024,
    broken: str = "",
    most_seconds: float = MOST_SECONDS,
    minutes: float | None = None,
) -> Report:
    """Does one run in a new folder and returns its report.

    Args:
        only: faults instead of the plan's, in this order.
        broken: a protection that is to be off.
        most_seconds: for one recovery.
        minutes: no fault begins later than that.
    """
    report = Report(seed, runner, rate)
    with Site(folder, runner, disk_megabytes=disk_megabytes, broken=broken) as site:
        faults = plan(seed, kills, runner, others=others, disk=site.own_disk)
        if only:
            faults = [Planned(kind, 3.0, 6.0) for kind in only]
        _say(f"seed {seed}, {runner}, {rate:g} events/s: {', '.join(fault.kind for fault in faults)}")
        try:
            Run(site, report).under(faults, most_seconds=most_seconds, minutes=minutes)
        except RuntimeError as error:
            report.verdict.faults.append(str(error))
    return report


def show(report: Report) -> None:
    """Prints the table and the verdict."""
    print("\n| # | fault | at (s) | lasted (s) | recovered after (s) | relaunches |")
    print("|---|---|---|---|---|---|")
    for number, fault in enumerate(report.faults, 1):
        print(f"| {number} | {' | '.join(_cells(fault))} |")
    took = sorted(fault.recovered_seconds for fault in report.faults if fault.recovered_seconds is not None)
    if took:
        slow = sum(1 for each in took if each > TARGET_SECONDS)
        print(
            f"\nrecovered: median {took[len(took) // 2]:.0f} s, longest {took[-1]:.0f} s, {slow} above {TARGET_SECONDS:.0f} s; "
            f"run took {report.elapsed_seconds:.0f} s"
        )
    for name, number in report.verdict.counts.items():
        print(f"  {name}: {number:,}")
    for fault_found in report.verdict.faults:
        print(f"FAULT {fault_found}")
    print("VERDICT: " + ("sound" if report.sound else "NOT SOUND"))


def _cells(fault: Fault) -> list[str]:
    took = "never" if fault.recovered_seconds is None else f"{fault.recovered_seconds:.1f}"
    return [fault.kind, f"{fault.at_seconds:.0f}", f"{fault.lasted_seconds:.1f}", took, str(fault.relaunches)]


def _line(number: int, fault: Fault) -> str:
    return f"{number:3} " + "  ".join(_cells(fault))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--others", type=int, default=None, help="faults that pass; default: half as many as kills"
    )
    parser.add_argument("--rate", type=float, default=3000.0, help="events a second")
    parser.add_argument("--runner", choices=sorted(KILLS), default="flink")
    parser.add_argument("--only", default="", help="faults instead of the plan's, joined by commas")
    parser.add_argument(
        "--disk-megabytes", type=int, default=1024, help="of the output's own file system; 0: none"
    )
    parser.add_argument(
        "--break", dest="broken", default="", help="a protection that is to be off: commit_at_once"
    )
    parser.add_argument("--most-seconds", type=float, default=MOST_SECONDS, help="for one recovery")
    parser.add_argument("--minutes", type=float, default=None, help="no fault begins later than that")
    parser.add_argument(
        "--folder", type=Path, default=None, help="kept afterwards; default: a new one, which is not"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the report there too")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # Ends what it has started.
    folder = given.folder or Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    try:
        report = run(
            folder,
            seed=given.seed,
            kills=given.kills,
            rate=given.rate,
            runner=given.runner,
            others=given.others,
            only=[kind for kind in given.only.split(",") if kind],
            disk_megabytes=given.disk_megabytes,
            broken=given.broken,
            most_seconds=given.most_seconds,
            minutes=given.minutes,
        )
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    show(report)
    if given.json:
        given.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    sys.exit(0 if report.sound else 1)


if __name__ == "__main__":
    main()
