"""Proving that a definition gives the same rows as a batch and as a stream."""

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.inputs import Plan, plan_inputs
from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.pipelines.batch import run_batch
from headrace.pipelines.build_definition import build_definition, definition_identity
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.definition import Definition
from headrace.pipelines.settings import identity
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.verify.compare_parity import compare_parity
from headrace.pipelines.verify.compare_tables import EXAMPLES
from headrace.pipelines.verify.deliver import Deliverer
from headrace.pipelines.verify.disturb import DELAYED_SHARE, REPEATED_SHARE, Disturbance, disturb
from headrace.pipelines.verify.input_records import InputRecords, keep_records, only_lines, stream_format
from headrace.pipelines.verify.parity_facts import open_outputs, read_facts, register_records
from headrace.pipelines.verify.parity_report import ParityReport
from headrace.pipelines.verify.parity_settings import proof_stream
from headrace.pipelines.verify.stored_tables import open_database
from headrace.pipelines.verify.stream_apart import require_runner, run_stream_apart
from headrace.schemas.errors import ConfigError, UntrustedRunError

STATE_FILE = "parity.json"
DELIVERIES = 24
_SHOWN_SETTINGS = (
    "readers",
    "shards",
    "window_shards",
    "watermark_delay_seconds",
    "allowed_lateness_seconds",
    "early_seconds",
    "poll_rows",
)

OnStep = Callable[[str], None]
OnSent = Callable[[int, int], None]


def prove_parity(
    batch: BatchConfig,
    stream: StreamConfig,
    *,
    seed: int,
    work: Path | None = None,
    runner: str = "prism",
    beam_args: Sequence[str] = (),
    examples: int = EXAMPLES,
    on_step: OnStep = lambda step: None,
    on_sent: OnSent = lambda committed, total: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ParityReport:
    """Runs a batch over the input and a stream over the same records, disturbed, and compares all that they leave.

    The records that are sent are in clear, as the input is; they are deleted when the stream has ended.

    Args:
        batch: input and definition.
        stream: the same definition; its delay and lateness decide how far records are displaced.
        seed: of the disturbance.
        work: folder for what both write, empty, or of the same proof: what it has finished is not run again. None: a temporary
            one, which is kept only if there is a difference.
        runner: of the stream; the batch runs in this process.
        beam_args: more options of Beam for it.
        examples: most of each kind in the report.
        on_step: told what is done next.
        on_sent: told how many records the stream has committed, and of how many.
        clock: gives the reference time where the configuration has none.

    Raises:
        ConfigError: settings that can't be run, nothing accepted, or a folder with something else in it.
        InputError: the input can't be read.
        UntrustedRunError: a run lost or doubled rows by its own ledger, or the stream stands still.
    """
    folder = Path(tempfile.mkdtemp(prefix="headrace-parity-")) if work is None else work.absolute()
    batch = dataclasses.replace(batch, output=str(folder / "batch"))
    keep = work is not None
    try:
        batch.require_paths()
        proof = _Proof(batch, stream, seed, runner, tuple(beam_args), folder, on_step, on_sent, clock)
        report = proof.run(examples)
        keep = keep or not report.equal
        return report
    except UntrustedRunError as error:
        keep = True
        raise UntrustedRunError(f"{error}. What the runs left is in {folder}") from error
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Proof:
    """One proof in its folder: ``batch`` and ``stream`` are the outputs, ``parity.json`` says what they belong to."""

    batch: BatchConfig
    stream: StreamConfig
    seed: int
    runner: str
    beam_args: tuple[str, ...]
    folder: Path
    on_step: OnStep
    on_sent: OnSent
    clock: Callable[[], datetime]

    def run(self, examples: int) -> ParityReport:
        inputs = plan_inputs(
            self.batch.input,
            format=None if self.batch.format == "auto" else self.batch.format,
            split_bytes=self.batch.split_bytes,
        )
        format = stream_format(inputs)
        definition = build_definition(self.batch)
        incoming = f"dir:{quote(str(self.folder / 'incoming'))}"
        stream = dataclasses.replace(self.stream, source=incoming, output=str(self.folder / "stream"))
        require_runner(stream, self._arguments())
        done = self._claim(inputs, definition)
        times = [time.monotonic()]
        self.on_step("running the batch")
        result = run_batch(self.batch, clock=self.clock)
        if not result.ledger.balanced:
            raise UntrustedRunError(f"the batch: {result.ledger.explain_imbalance()}")
        times.append(time.monotonic())
        try:
            records, mapped = self._keep_records(inputs, definition, result.now)
            plan = self._plan(records)
            config = proof_stream(
                self.stream,
                incoming=self.folder / "incoming",
                output=self.folder / "stream",
                now=result.now,
                format=format,
                mapped=mapped,
                delivery_rows=len(plan.record) // max(len(plan.deliveries), 1),
            )
            if not done:
                self.on_step(
                    f"running the stream: {len(plan.record):,} records, {len(plan.deliveries)} deliveries"
                )
                self._run_stream(config, records, plan, format)
        finally:
            (self.folder / "records").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "incoming", ignore_errors=True)
        times.append(time.monotonic())
        self.on_step("comparing")
        with open_database() as connection:
            register_records(connection, records)
            names = [open_outputs(connection, side, self.folder / side) for side in ("batch", "stream")]
            found = compare_parity(
                connection, plan, format, definition.metrics, examples=examples, names=(names[0], names[1])
            )
        times.append(time.monotonic())
        steps = zip(("batch", "stream", "comparison"), times[1:], times, strict=False)
        return ParityReport(
            seed=self.seed,
            runner=self.runner,
            now=result.now,
            settings={name: getattr(config, name) for name in _SHOWN_SETTINGS},
            records=len(records),
            unreadable=records.unreadable,
            sent=len(plan.record),
            plan=_numbers(plan),
            found=found,
            seconds={step: round(ended - began, 1) for step, ended, began in steps},
            work=self.folder,
        )

    def _claim(self, inputs: Plan, definition: Definition) -> bool:
        """Notes what the folder is for; returns whether the stream has been run in it already.

        Raises:
            ConfigError: it holds something else.
        """
        path = self.folder / STATE_FILE
        proof = {
            "seed": self.seed,
            "runner": [self.runner, *self.beam_args],
            "input": {file.origin: file.checksum for file in inputs.files},
            "now": None if self.batch.now is None else self.batch.now.isoformat(),
            "definition": definition_identity(self.batch, definition),
            "stream": identity(self.stream),
            "plan": [DELIVERIES, DELAYED_SHARE, REPEATED_SHARE],
        }
        mine = json.loads(json.dumps(proof))
        if path.exists():
            found = json.loads(path.read_bytes())
            differing = [name for name in mine if found["proof"].get(name) != mine[name]]
            if differing:
                raise ConfigError(
                    f"{self.folder} holds another proof: its {differing[0]} differs; name another --work, or delete it"
                )
            if not found["done"]:
                for name in ("stream", "incoming"):  # An unfinished stream is run anew.
                    shutil.rmtree(self.folder / name, ignore_errors=True)
            return bool(found["done"])
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} is not empty and holds no proof; name another --work")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"proof": mine, "done": False}).encode())
        return False

    def _keep_records(self, inputs: Plan, definition: Definition, now: datetime) -> tuple[InputRecords, bool]:
        """Reads the records that are sent; returns also whether they are mapped already.

        Lines are sent as they are and mapped by the stream. What documents were made of can't be sent, so they are sent mapped.
        """
        mapped = bool(self.batch.mapping) and not only_lines(inputs)
        records = keep_records(
            inputs,
            self.folder / "records",
            now=now,
            mapping=self.batch.mapping if mapped else None,
            schema=definition.registry.get(definition.schema).document if definition.schema else None,
            max_record_bytes=self.batch.max_record_bytes,
        )
        return records, mapped

    def _plan(self, records: InputRecords) -> Disturbance:
        with open_database() as connection:
            register_records(connection, records)
            open_outputs(connection, "batch", self.folder / "batch")
            facts = read_facts(connection, records)
        return disturb(
            facts.times,
            seed=self.seed,
            watermark_delay_us=self.stream.watermark_delay_seconds * 1_000_000,
            allowed_lateness_us=self.stream.allowed_lateness_seconds * 1_000_000,
            repeatable=facts.repeatable,
            after=facts.after,
            deliveries=DELIVERIES,
        )

    def _arguments(self) -> list[str]:
        return [f"--runner={self.runner}", *self.beam_args]

    def _run_stream(
        self, config: StreamConfig, records: InputRecords, plan: Disturbance, format: str
    ) -> None:
        """Runs the stream until it has all of the plan, and checks its ledger."""
        incoming = self.folder / "incoming"
        incoming.mkdir()
        deliverer = Deliverer(records, plan, incoming, self.folder / "stream", format)
        deliverer.deliver()

        def look(totals: StreamTotals) -> None:
            deliverer(totals)
            self.on_sent(totals.rows_in, len(plan.record))

        run_stream_apart(config, self._arguments(), look, log=self.folder / "stream.log")
        totals = read_stream_ledger(config.output, positions=False)
        ledger = totals.ledger()
        if totals.in_flight or not ledger.balanced:
            raise UntrustedRunError(f"the stream: {totals.fault or totals.equation}")
        if ledger.rows_in != len(plan.record):
            raise UntrustedRunError(
                f"the stream has read {ledger.rows_in:,} of {len(plan.record):,} records and ended"
            )
        path = self.folder / STATE_FILE
        replace_file(path, json.dumps({**json.loads(path.read_bytes()), "done": True}).encode())


def _numbers(plan: Disturbance) -> dict[str, Any]:
    return {
        "shuffled": plan.shuffled,
        "delayed": plan.delayed,
        "largest_disorder_seconds": plan.largest_disorder_us / 1e6,
        "repeated": plan.repeated,
        "copies": plan.copies,
        "deliveries": len(plan.deliveries),
        "files": plan.deliveries[-1].file + 1 if plan.deliveries else 0,
    }
