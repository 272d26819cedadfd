"""Takes a protection off in the processes that have this folder on their PYTHONPATH, for control runs.

``HEADRACE_CHAOS_BREAK=commit_at_once``: the commit stage does not wait for a checkpoint, the committer does not ask the tables
what they have, and the accounts take what they are told: a sink as it is usually written.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

_COMMIT_FN = "headrace.pipelines.streaming.commit_fn"


def _commit_at_once(module: ModuleType) -> None:
    from headrace.connectors import commit_stream
    from headrace.connectors.commit_state import Mark
    from headrace.connectors.stream_accounts import Accounts
    from headrace.connectors.stream_entries import EVENTS, FilesEntry, LateEntry, PollEntry, ShardEntry

    def durable_until(self: Any, rest: Any) -> int:
        return 1 << 62

    def commit(self: Any, ready: Any, *, committed_at: int) -> Any:
        return guarded(self, replace(ready, dropped=Mark(-1, 0)), committed_at=committed_at)

    def mark(self: Any, name: str, ready: Any) -> None:
        self._tables[name].mark(self._app_id)

    def after(self: Accounts, entries: Any, step: Any) -> Accounts:
        new = Accounts.decode(self.encode())
        touched = set()
        for entry in entries:
            if isinstance(entry, LateEntry):
                new.late[entry.name] = new.late.get(entry.name, 0) + entry.count
            if isinstance(entry, FilesEntry):
                for file in entry.files:
                    if entry.table == EVENTS:
                        step.accepted += file.rows
            if not isinstance(entry, PollEntry | ShardEntry):
                continue
            known = new.readers.get(entry.reader)
            if known is not None and entry.poll < known.done:
                continue
            _, poll = new._open(entry.reader, entry.poll, "")
            touched.add(entry.reader)
            if isinstance(entry, PollEntry) and poll.entry is None:
                new._poll(entry, step)
                new.rejected.setdefault("unknown", {}).setdefault("unknown", 0)
                new.rejected["unknown"]["unknown"] += entry.rejected_by_reader
            elif isinstance(entry, ShardEntry) and entry.shard not in poll.answers:
                new._answer(entry)
                new.accepted += entry.accepted
                new.rejected.setdefault("unknown", {}).setdefault("unknown", 0)
                new.rejected["unknown"]["unknown"] += entry.rejected
        for number in sorted(touched):
            new._advance(number, new.readers[number], step)
        return new

    guarded = commit_stream.StreamCommitter.commit
    commit_stream.StreamCommitter.commit = commit  # type: ignore[method-assign]
    module.CommitFn._durable_until = durable_until  # type: ignore[attr-defined]
    commit_stream.StreamCommitter._mark = mark  # type: ignore[method-assign]
    Accounts.after = after  # type: ignore[method-assign]
    Accounts._in_windows = lambda self, reader, entry: True  # type: ignore[method-assign]


_BREAKS = {"commit_at_once": (_COMMIT_FN, _commit_at_once)}


class _Finder(importlib.abc.MetaPathFinder):
    """Changes a module right after it was imported."""

    def __init__(self, name: str, change: Any) -> None:
        self._name, self._change = name, change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        before, change = spec.loader.exec_module, self._change

        def exec_module(module: ModuleType) -> None:
            before(module)
            change(module)
            print(f"control run: a protection is off in process {os.getpid()}", file=sys.stderr)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("HEADRACE_CHAOS_BREAK") in _BREAKS:
    import importlib.util

    sys.meta_path.insert(0, _Finder(*_BREAKS[os.environ["HEADRACE_CHAOS_BREAK"]]))
