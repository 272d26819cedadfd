"""Events of a run by the OpenLineage specification, version 2-0-2: START, then COMPLETE, FAIL or ABORT.

Source: https://openlineage.io/spec/2-0-2/OpenLineage.json, and the naming of datasets on https://openlineage.io/docs/spec/naming.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.connectors.ledger import Ledger
from headrace.pipelines.lineage.transport import NAMESPACE, Transport, transport_of
from headrace.schemas.errors import HeadraceError

_SPEC = "https://openlineage.io/spec"
SCHEMA_URL = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACETS = {
    "schema": "1-2-0/SchemaDatasetFacet",
    "errorMessage": "1-0-1/ErrorMessageRunFacet",
    "nominalTime": "1-0-1/NominalTimeRunFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
}
_OWN = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunFacet"
"""Of ``headrace_run``: a facet of our own, which fulfils the base schema."""


@dataclass
class Running:
    """A run that is told of; what it learns on the way can be added before its end."""

    job: str
    kind: str
    """``BATCH`` or ``STREAMING``."""
    inputs: list[str]
    """Paths, or URLs of streams."""
    outputs: list[str]
    """Paths of tables."""
    fingerprint: str
    """Of the configuration."""
    nominal: tuple[datetime, datetime] | None = None
    """The time that the run is for."""
    rows: dict[str, int] = field(default_factory=dict)
    """Output → rows that it has now."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def wrote(self, out: str | os.PathLike[str], ledger: Ledger | None = None) -> None:
        """Tells at the end of all tables that are there now, and of how many rows came of the run's ledger."""
        self.outputs = tables_below(out)
        if ledger is not None:
            self.rows = dict(zip(self.outputs, (ledger.accepted, ledger.total_rejected), strict=False))

    def event(
        self, type_: str, at: datetime, namespace: str, error: BaseException | None = None
    ) -> dict[str, Any]:
        """Returns one event as JSON values."""
        run_facets: dict[str, Any] = {
            "headrace_run": {
                "_producer": _producer(),
                "_schemaURL": _OWN,
                "version": version("headrace"),
                "configurationFingerprint": self.fingerprint,
            }
        }
        if self.nominal is not None:
            start, end = (_text(each) for each in self.nominal)
            run_facets["nominalTime"] = _facet("nominalTime", nominalStartTime=start, nominalEndTime=end)
        if error is not None:
            run_facets["errorMessage"] = _facet(
                "errorMessage", message=_message(error), programmingLanguage="Python"
            )
        job_facets = {
            "jobType": _facet("jobType", processingType=self.kind, integration="HEADRACE", jobType="JOB")
        }
        return {
            "eventType": type_,
            "eventTime": _text(at),
            "run": {"runId": self.id, "facets": run_facets},
            "job": {"namespace": namespace, "name": self.job, "facets": job_facets},
            "inputs": [dataset(each) for each in self.inputs],
            "outputs": [self._output(each) for each in self.outputs],
            "producer": _producer(),
            "schemaURL": SCHEMA_URL,
        }

    def _output(self, path: str) -> dict[str, Any]:
        found = dataset(path)
        if path in self.rows:
            found["outputFacets"] = {"outputStatistics": _facet("outputStatistics", rowCount=self.rows[path])}
        return found


@contextmanager
def told(
    job: str,
    *,
    inputs: Sequence[str | os.PathLike[str]],
    outputs: Sequence[str | os.PathLike[str]],
    configuration: Mapping[str, Any],
    kind: str = "BATCH",
    nominal: tuple[datetime, datetime] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    transport: Transport | None = None,
) -> Iterator[Running]:
    """Tells of the run in the ``with`` block: START before it, COMPLETE after it, FAIL if it raises, ABORT if it is interrupted.

    Without a transport in the environment nothing is told, and nothing is read. A collector that fails never fails the run.

    Args:
        job: its name in the namespace (``$OPENLINEAGE_NAMESPACE``, else ``headrace``).
        configuration: what decides the rows; only its fingerprint is told.
        nominal: the time that the run is for.

    Raises:
        ConfigError: the environment names a transport that is none.
    """
    way = transport if transport is not None else transport_of()
    run = Running(
        job,
        kind,
        [os.fspath(each) for each in inputs],
        [os.fspath(each) for each in outputs],
        fingerprint_of(configuration),
        nominal,
    )
    if way is None:
        yield run
        return
    namespace = os.environ.get(NAMESPACE) or "headrace"
    way.send(run.event("START", clock(), namespace))
    try:
        yield run
    except KeyboardInterrupt:
        way.send(run.event("ABORT", clock(), namespace))
        raise
    except BaseException as error:
        way.send(run.event("FAIL", clock(), namespace, error))
        raise
    way.send(run.event("COMPLETE", clock(), namespace))


def dataset(place: str) -> dict[str, Any]:
    """Returns a dataset by the specification's naming, with its schema where it can be read from a table's log or a footer.

    Example:
        >>> dataset("kafka://broker:9092/orders")["namespace"], dataset("kafka://broker:9092/orders")["name"]
        ('kafka://broker:9092', 'orders')
    """
    parts = urlsplit(place)
    if parts.scheme == "kafka":
        host = parts.netloc.rpartition("@")[2]
        return {"namespace": f"kafka://{host}", "name": parts.path.lstrip("/"), "facets": {}}
    if parts.scheme == "pubsub":
        return {
            "namespace": "pubsub",
            "name": f"subscription:{parts.netloc}:{parts.path.lstrip('/')}",
            "facets": {},
        }
    path = Path(place.removeprefix("dir:").partition("?")[0] if parts.scheme == "dir" else place).absolute()
    schema = _schema(path)
    facets = {}
    if schema is not None:
        fields = [{"name": each.name, "type": str(each.type)} for each in schema]
        facets["schema"] = _facet("schema", fields=fields)
    return {"namespace": "file", "name": os.fspath(path), "facets": facets}


def tables_below(out: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of an output's tables: lake, quarantine and window tables, those of a warehouse."""
    root = Path(out)
    found = [root / name for name in ("events", "quarantine")]
    if (root / "metrics").is_dir():
        found += sorted(path for path in (root / "metrics").iterdir() if path.is_dir())
    return [os.fspath(path) for path in found]


def fingerprint_of(configuration: Mapping[str, Any]) -> str:
    """Returns 32 hex characters of a configuration."""
    text = json.dumps(configuration, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _schema(path: Path) -> pa.Schema | None:
    """Never a reason to fail: a table that can't be read has no schema."""
    try:
        if path.is_dir() and DeltaTable.is_deltatable(os.fspath(path)):
            return pa.schema(DeltaTable(os.fspath(path)).schema().to_arrow())
        first = next(path.rglob("*.parquet"), None) if path.is_dir() else path
        if first is not None and first.suffix == ".parquet" and first.is_file():
            return pq.read_schema(first)
    except (OSError, pa.ArrowException, DeltaError):
        return None
    return None


def _facet(name: str, **content: Any) -> dict[str, Any]:
    path = _FACETS[name]
    kind = path.partition("/")[2]
    return {"_producer": _producer(), "_schemaURL": f"{_SPEC}/facets/{path}.json#/$defs/{kind}", **content}


def _message(error: BaseException) -> str:
    """Only our own messages are known to hold no value of an event."""
    return str(error) if isinstance(error, HeadraceError) else type(error).__name__


def _producer() -> str:
    return f"urn:headrace:{version('headrace')}"


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
