"""What every transform in the registry keeps; one without an example here fails."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.coders import coders
from apache_beam.internal import pickler
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

import headrace.transforms
from headrace.schemas.columns import (
    CODE,
    DECODED_SCHEMA,
    ENRICHED_SCHEMA,
    EVENT_SCHEMA,
    QUARANTINE_SCHEMA,
    RAW_SCHEMA,
    VALID_SCHEMA,
)
from headrace.transforms import (
    AggregateWindows,
    AssignPositionIds,
    Attribute,
    Cohorts,
    Decode,
    Deduplicate,
    Enrich,
    EnrichCountry,
    FilterEvents,
    FromDicts,
    FromRows,
    Funnel,
    Key,
    MaskPii,
    ProfileUsers,
    RejectStale,
    Sessionize,
    ToDicts,
    ToRows,
    Validate,
)
from headrace.transforms.base import LateResults, Outcome, Results, StageTransform
from headrace.transforms.batches import concat, plain
from headrace.transforms.coders import RecordBatchCoder
from headrace.transforms.registry import TRANSFORMS

from .transforms.collect import Batches
from .transforms.documents import ID, VALID

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
PICKLES = (coders.FastPrimitivesCoder, coders.PickleCoder, coders.DillCoder, coders.CloudpickleCoder)


class Example(NamedTuple):
    """One use of a transform."""

    make: Callable[[Key], beam.PTransform]
    after: str | None
    """The stage whose accepted rows it reads; None: raw records."""
    schema: pa.Schema | None
    """Promised for ``.accepted``; None: no batches, or columns of its own."""
    rejects: int
    """How many rows of its input it rejects; counted by hand in the documents below."""
    metrics: str = ""
    """Where its counters are; empty: after the kernel's name."""


EXAMPLES = {
    "decode": Example(lambda key: Decode(key=key), None, DECODED_SCHEMA, 2),
    "validate": Example(lambda key: Validate(key=key), "decode", VALID_SCHEMA, 1),
    "reject_stale": Example(lambda key: RejectStale(key=key), "validate", VALID_SCHEMA, 2),
    "assign_position_ids": Example(lambda key: AssignPositionIds(), "reject_stale", VALID_SCHEMA, 0),
    "enrich_country": Example(lambda key: EnrichCountry(), "reject_stale", VALID_SCHEMA, 0),
    "mask_pii": Example(lambda key: MaskPii(key), "enrich_country", EVENT_SCHEMA, 0),
    "deduplicate": Example(lambda key: Deduplicate(4), "mask_pii", EVENT_SCHEMA, 2, "dedupe"),
    "enrich": Example(lambda key: Enrich(), "mask_pii", ENRICHED_SCHEMA, 0),
    "filter_events": Example(
        lambda key: FilterEvents({"clicks": "event_type = 'click'"}), "enrich", ENRICHED_SCHEMA, 1
    ),
    "aggregate_windows": Example(lambda key: AggregateWindows(), "enrich", None, 0, "windows"),
    "sessionize": Example(lambda key: Sessionize(), "enrich", None, 0, "sessions"),
    "funnel": Example(
        lambda key: Funnel({"view": {"event_type": "page_view"}, "buy": {"event_type": "purchase"}}),
        "enrich",
        None,
        0,
        "funnel",
    ),
    "attribute": Example(lambda key: Attribute(), "enrich", None, 0, "attribute"),
    "cohorts": Example(lambda key: Cohorts(), "enrich", None, 0, "cohorts"),
    "profile_users": Example(lambda key: ProfileUsers(), "enrich", None, 0, "profile_users"),
    "from_dicts": Example(lambda key: FromDicts(ingest_time=NOW), None, RAW_SCHEMA, 0, "edges"),
    "from_rows": Example(lambda key: FromRows(ingest_time=NOW), None, RAW_SCHEMA, 0, "edges"),
    "to_dicts": Example(lambda key: ToDicts(), "enrich", None, 0, "edges"),
    "to_rows": Example(lambda key: ToRows(), "enrich", None, 0, "edges"),
}
STAGES = [name for name, cls in TRANSFORMS.items() if issubclass(cls, StageTransform)]
PER_USER = ("funnel", "attribute", "cohorts", "profile_users")
"""Their ``.accepted`` holds results of users, not rows; their counters count the rows."""
ENTRIES = ("from_dicts", "from_rows")


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return Key(tmp_path_factory.mktemp("contract") / "key", create=True)


def raw_documents() -> list[bytes]:
    """All families, and one row for each fault that a stage before the windows rejects."""
    good = [json.dumps(d).replace(ID, ID.format(n)) for n, d in enumerate(VALID.values())]
    commerce = json.dumps(VALID["commerce"])
    bad = [
        "{",  # decode
        '{"nobody": "knows"}',  # decode
        commerce.replace('"USD"', "7").replace(ID, ID.format(100)),  # validate
        commerce.replace("2026-", "2020-").replace(ID, ID.format(101)),  # stale
        commerce.replace("2026-", "2030-").replace(ID, ID.format(102)),  # future
        good[list(VALID).index("commerce")],  # duplicate
        good[list(VALID).index("commerce")].replace('"p1"', '"p2"'),  # conflict
    ]
    return [d.encode() for d in good + bad]


@pytest.fixture(scope="module")
def inputs(key):
    """The input batch of a transform by the name of the stage before it; raw records by None."""
    documents = raw_documents()
    rows = [
        {"raw": d, "origin": "f", "origin_position": n, "ingest_time": NOW}
        for n, d in enumerate(documents, 1)
    ]
    found = {None: pa.RecordBatch.from_pylist(rows, schema=RAW_SCHEMA)}
    for name in STAGES:
        found[name] = run_kernel(name, key)(found[EXAMPLES[name].after]).accepted
    return found


@cache
def run_kernel(name: str, key: Key) -> Callable[[pa.RecordBatch], Outcome]:
    kernel = EXAMPLES[name].make(key).kernel()
    kernel.setup()
    return kernel


def rows_of(outcomes: list[Outcome]) -> tuple[list[dict], list[dict]]:
    accepted = [r for o in outcomes for r in o.accepted.to_pylist()]
    return accepted, [r for o in outcomes for r in o.rejected.to_pylist()]


def bytes_of(batch: pa.RecordBatch) -> bytes:
    return RecordBatchCoder().encode(batch)


def with_strings(batch: pa.RecordBatch, *, encoded: bool) -> pa.RecordBatch:
    """All string columns plain, or all dictionary-encoded."""
    arrays = [plain(a) for a in batch.columns]
    if encoded:
        arrays = [a.cast(CODE) if pa.types.is_string(a.type) else a for a in arrays]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def test_every_transform_has_an_example():
    assert set(EXAMPLES) == set(TRANSFORMS)


def test_public_names_are_the_transforms_and_the_key():
    public = {n for n in vars(headrace.transforms) if n[0].isupper()}
    assert public == set(headrace.transforms.__all__)
    assert public == {cls.__name__ for cls in TRANSFORMS.values()} | {"Key"}
    assert list(headrace.transforms.__all__) == sorted(headrace.transforms.__all__)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_is_documented_and_named_after_its_file(name):
    cls = TRANSFORMS[name]
    assert cls.__module__ == f"headrace.transforms.{name}"
    assert cls.__name__ == "".join(part.capitalize() for part in name.split("_"))
    assert cls.__doc__.count("Input:") == cls.__doc__.count("Output:") == 1
    assert "stateless" in cls.__doc__.lower() or "replay" in cls.__doc__.lower()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_pickles_without_the_secret(name, key):
    data = pickler.dumps(EXAMPLES[name].make(key))
    assert isinstance(pickler.loads(data), TRANSFORMS[name])
    with open(key.path, "rb") as file:
        assert file.read().strip() not in data


@pytest.mark.parametrize("name", STAGES)
class TestKernel:
    def test_conserves_rows_and_keeps_the_schema(self, name, key, inputs):
        example, batch = EXAMPLES[name], inputs[EXAMPLES[name].after]
        accepted, rejected = run_kernel(name, key)(batch)
        assert accepted.schema.equals(example.schema), difference(accepted.schema, example.schema)
        assert rejected.schema.equals(QUARANTINE_SCHEMA)
        assert rejected.num_rows == example.rejects
        positions = Counter(accepted["origin_position"].to_pylist() + rejected["origin_position"].to_pylist())
        assert positions == Counter(batch["origin_position"].to_pylist())
        assert rejected["stage"].null_count == rejected["reason"].null_count == 0

    def test_leaves_its_input_as_it_was(self, name, key, inputs):
        batch = inputs[EXAMPLES[name].after]
        before = bytes_of(batch)
        run_kernel(name, key)(batch)
        assert bytes_of(batch) == before

    def test_batch_equals_row_by_row_and_any_cut(self, name, key, inputs):
        kernel, batch = run_kernel(name, key), inputs[EXAMPLES[name].after]
        whole = rows_of([kernel(batch)])
        assert rows_of([kernel(batch.slice(i, 1)) for i in range(batch.num_rows)]) == whole
        parts = [batch.slice(0, 4), batch.slice(4)]
        assert rows_of([kernel(p) for p in parts]) == whole
        twice = rows_of([kernel(concat([batch, batch]))])
        assert twice == (whole[0] * 2, whole[1] * 2)

    @pytest.mark.parametrize("encoded", [False, True], ids=["plain", "dictionary"])
    def test_encodings_are_the_same_rows(self, name, key, inputs, encoded):
        kernel, batch = run_kernel(name, key), inputs[EXAMPLES[name].after]
        assert rows_of([kernel(with_strings(batch, encoded=encoded))]) == rows_of([kernel(batch)])

    def test_empty_batches(self, name, key, inputs):
        batch = inputs[EXAMPLES[name].after]
        accepted, rejected = run_kernel(name, key)(batch.slice(0, 0))
        assert (accepted.num_rows, rejected.num_rows) == (0, 0)
        assert accepted.schema.equals(EXAMPLES[name].schema)
        assert rejected.schema.equals(QUARANTINE_SCHEMA)

    def test_rows_of_nulls_are_conserved(self, name, key, inputs):
        schema = inputs[EXAMPLES[name].after].schema
        nulls = pa.RecordBatch.from_arrays([pa.nulls(3, f.type) for f in schema], schema=schema)
        accepted, rejected = run_kernel(name, key)(nulls)
        assert accepted.num_rows + rejected.num_rows == 3


def difference(found: pa.Schema, promised: pa.Schema) -> str:
    pairs = [
        (n, found.field(n).type if n in found.names else None, promised.field(n).type) for n in promised.names
    ]
    return f"{[p for p in pairs if p[1] != p[2]]}, more: {set(found.names) - set(promised.names)}"


class _Outputs(PipelineVisitor):
    """Finds the PCollections made inside the transform under test."""

    def __init__(self) -> None:
        self.found: list[beam.PCollection] = []

    def enter_composite_transform(self, transform_node):
        self.visit_transform(transform_node)

    def visit_transform(self, transform_node):
        if transform_node.full_label.startswith("Tested"):
            self.found += [p for p in transform_node.outputs.values() if isinstance(p, beam.PCollection)]


def apply(name: str, key: Key, inputs: dict, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
    batch = inputs[EXAMPLES[name].after]
    if name in ENTRIES:
        values = [{"raw": d.decode(), "nested": {"n": None}} for d in batch["raw"].to_pylist()]
        values = [beam.Row(**v) for v in values] if name == "from_rows" else values
        read = pipeline | beam.Create(values, reshuffle=False)
    else:
        read = pipeline | Batches(
            [
                (batch.slice(0, 3), NOW.timestamp() - 86_400 * 365),
                (batch.slice(3), NOW.timestamp() - 86_400 * 365),
            ]
        )
    results = read | "Tested" >> EXAMPLES[name].make(key)
    return results._asdict() if isinstance(results, Results | LateResults) else {"accepted": results}


def component_coders(coder: coders.Coder) -> list[coders.Coder]:
    return [coder, *(inner for c in coder._get_component_coders() for inner in component_coders(c))]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_collection_is_pickled(name, key, inputs):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    results = apply(name, key, inputs, pipeline)
    visitor = _Outputs()
    pipeline.visit(visitor)
    proto, context = pipeline.to_runner_api(return_context=True)
    batches = 0
    for collection in visitor.found:
        if name == "to_dicts" and collection is results["accepted"]:
            continue
        coder_id = proto.components.pcollections[context.pcollections.get_id(collection)].coder_id
        used = component_coders(context.coders.get_by_id(coder_id))
        assert not any(isinstance(c, PICKLES) for c in used), (collection, used)
        batches += any(isinstance(c, RecordBatchCoder) for c in used)
    for collection in results.values():
        if name not in ("to_dicts", "to_rows"):
            assert collection.element_type is pa.RecordBatch
    assert batches or name in ("to_dicts", "to_rows")


class _CountFn(beam.DoFn):
    """Counts the rows, or what rows a window's result stands for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, value):
        rows = 1
        if isinstance(value, pa.RecordBatch):
            summed = {"window_start", "session_start"} & set(value.schema.names)
            rows = sum(value["events"].to_pylist()) if summed else value.num_rows
        beam.metrics.Metrics.counter("found", self._name).inc(rows)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_pipeline_conserves_rows_and_counts_them(name, key, inputs):
    example = EXAMPLES[name]
    pipeline = beam.Pipeline(runner=FnApiRunner())
    for output, collection in apply(name, key, inputs, pipeline).items():
        collection | f"Count {output}" >> beam.ParDo(_CountFn(output))
    result = pipeline.run()
    result.wait_until_finish()
    counters: dict[str, Counter[str]] = {}
    for metric in result.metrics().query()["counters"]:
        counters.setdefault(metric.key.metric.namespace, Counter())[metric.key.metric.name] += (
            metric.committed
        )
    expected = inputs[example.after].num_rows
    found = counters["found"]
    if name in PER_USER:
        assert found["accepted"]
        found["accepted"] = counters[f"headrace.{example.metrics}"]["accepted"]
    assert found["accepted"] + found["rejected"] == expected
    assert found["rejected"] == example.rejects
    own = counters["headrace." + (example.metrics or example.make(key).kernel().name)]
    if example.metrics == "edges":
        assert own == {"rows_in" if name in ENTRIES else "rows_out": expected}
    else:
        assert (own["accepted"], own["rejected"]) == (found["accepted"], found["rejected"])


def test_stages_may_not_share_a_name(key):
    names = [run_kernel(name, key).name for name in STAGES] + ["dedupe", "windows", "sessions", *PER_USER]
    assert len(set(names)) == len(names)
