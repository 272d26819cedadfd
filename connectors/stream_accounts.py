"""Double-entry accounts of a stream: every record of every poll is held against the rows that reached the tables. Pure.

    rows in = rejected by the reader + Σ over shards (accepted + rejected)

for each poll, and for each packed list of entries: what it counts is what its files hold. A poll is *complete* when its reader
and all of its shards have reported; a reader is *done* up to the first poll that is not complete.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from headrace.connectors.stream_entries import (
    EVENTS,
    EndEntry,
    Entry,
    FilesEntry,
    LateEntry,
    PollEntry,
    ShardEntry,
    TakenEntry,
)

Rejected = dict[str, dict[str, int]]
"""{stage: {reason: rows}}."""


class Imbalance(Exception):
    """Entries that don't add up; the message names reader, poll and numbers."""


class OpenPoll(msgspec.Struct, array_like=True):
    """A poll that is not complete, or waits for one before it."""

    entry: PollEntry | None = None
    answers: dict[int, tuple[int, int]] = {}
    """{shard: (accepted, rejected)}."""

    @property
    def complete(self) -> bool:
        return self.entry is not None and len(self.answers) == len(self.entry.rows_to_shard)

    @property
    def outstanding(self) -> int:
        """Rows read and not yet in a table; negative where shards have reported before the reader."""
        answered = sum(accepted + rejected for accepted, rejected in self.answers.values())
        if self.entry is None:
            return -answered
        return self.entry.rows_in - self.entry.rejected_by_reader - answered


class ReaderAccount(msgspec.Struct, array_like=True):
    """What is known of one reader; of polls that are done, except ``behind``, which is of the newest poll."""

    done: int = 0
    """Polls 0 to ``done`` - 1 are complete."""
    watermark: int | None = None
    behind: int = 0
    behind_poll: int = -1
    position: str = ""
    final: bool = False
    open: dict[int, OpenPoll] = {}
    read_at: int | None = None
    """When the last of them was read, µs."""


class Step(msgspec.Struct):
    """What some entries have changed."""

    rows_in: int = 0
    accepted: int = 0
    rejected: Rejected = {}
    late: dict[str, int] = {}
    reads: dict[str, list[int]] = {}
    """{origin: [first, next]} of the polls that became done."""
    receipts: list[str] = []
    """Of the polls that became done."""


class Accounts(msgspec.Struct, array_like=True):
    """The accounts of one job and the totals of the output. Survives restarts in the ledger's table."""

    readers: dict[int, ReaderAccount] = {}
    rows_in: int = 0
    accepted: int = 0
    rejected: Rejected = {}
    late: dict[str, int] = {}
    earlier_watermark: int | None = None
    """Of the job before."""
    ended: list[int] = []
    """Window shards that have come to the end of the stream."""
    taken: dict[int, dict[int, int]] = {}
    """{window shard: {reader: polls of which all that came in windows is told}}."""
    taken_later: list[TakenEntry] = []
    """What is told of later polls than those that follow."""

    def after(self, entries: Sequence[Entry], step: Step) -> "Accounts":
        """Returns the accounts with the entries of one packed list; adds to ``step`` what they changed. This one is unchanged.

        Raises:
            Imbalance: they don't add up, among themselves or with what came before; ``step`` is of no use then.
        """
        new = Accounts.decode(self.encode())
        new._hold_files(entries, step)
        touched = set()
        for entry in entries:
            if isinstance(entry, PollEntry):
                new._poll(entry, step)
            elif isinstance(entry, ShardEntry):
                new._answer(entry)
            elif isinstance(entry, LateEntry):
                for counts in (new.late, step.late):
                    counts[entry.name] = counts.get(entry.name, 0) + entry.count
            elif isinstance(entry, TakenEntry):
                new.taken_later.append(entry)
            elif isinstance(entry, EndEntry) and entry.key not in new.ended:
                new.ended.append(entry.key)
            if isinstance(entry, PollEntry | ShardEntry):
                touched.add((entry.reader, entry.poll))
        for reader, poll in sorted(touched):
            _check(reader, poll, new.readers[reader].open[poll])
        new._take()
        for number, account in sorted(new.readers.items()):
            new._advance(number, account, step)
        return new

    @property
    def outstanding(self) -> int:
        """Rows read and not yet in a table, less those in a table whose reader has not reported yet."""
        return sum(poll.outstanding for _, _, poll in self.open_polls())

    @property
    def in_flight(self) -> int:
        """Rows read and not yet in a table."""
        return sum(max(poll.outstanding, 0) for _, _, poll in self.open_polls())

    @property
    def balanced(self) -> bool:
        """True if the tables have every row that came in and is not in flight, and no other."""
        rejected = sum(sum(reasons.values()) for reasons in self.rejected.values())
        return self.rows_in == self.accepted + rejected + self.outstanding

    @property
    def watermark(self) -> int | None:
        """The lowest of all readers; None if one has none yet."""
        if not self.readers:
            return self.earlier_watermark
        lowest = None
        for reader in self.readers.values():
            if reader.watermark is None:
                return None
            lowest = reader.watermark if lowest is None else min(lowest, reader.watermark)
        return lowest

    @property
    def behind(self) -> int:
        return sum(reader.behind for reader in self.readers.values())

    def open_polls(self) -> Iterator[tuple[int, int, OpenPoll]]:
        """Yields (reader, poll, what is known of it) of all polls that are not done."""
        for number, reader in self.readers.items():
            for poll, known in reader.open.items():
                yield number, poll, known

    def next_job(self) -> "Accounts":
        """Returns the accounts with which another job begins: the totals, and no reader."""
        watermark = self.earlier_watermark if self.watermark is None else self.watermark
        return Accounts({}, self.rows_in, self.accepted, self.rejected, self.late, watermark)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, packed: bytes) -> "Accounts":
        return msgspec.msgpack.decode(packed, type=cls)

    def _hold_files(self, entries: Sequence[Entry], step: Step) -> None:
        """Adds the files' rows to the totals, and holds them against what the same list counts."""
        counted, held = [0, 0], [0, 0]
        for entry in entries:
            if isinstance(entry, PollEntry):
                counted[1] += entry.rejected_by_reader
            elif isinstance(entry, ShardEntry):
                counted[0] += entry.accepted
                counted[1] += entry.rejected
            elif isinstance(entry, FilesEntry):
                for file in entry.files:
                    held[0 if entry.table == EVENTS else 1] += file.rows
                    if entry.table == EVENTS:
                        self.accepted += file.rows
                        step.accepted += file.rows
                        continue
                    reasons = file.stats.get("by_reason", {})
                    if _total(reasons) != file.rows:
                        raise Imbalance(
                            f"quarantine file {file.path} holds {file.rows:,} rows, its reasons count {_total(reasons):,}"
                        )
                    add_rejected(self.rejected, reasons)
                    add_rejected(step.rejected, reasons)
        for which, word in enumerate(("accepted", "rejected")):
            if counted[which] != held[which]:
                raise Imbalance(
                    f"{_who(entries)}: {counted[which]:,} rows are counted as {word}, the files that came with them hold "
                    f"{held[which]:,}"
                )

    def _poll(self, entry: PollEntry, step: Step) -> None:
        where = f"reader {entry.reader}, poll {entry.poll}"
        reader, poll = self._open(entry.reader, entry.poll, "its reader")
        if poll.entry is not None:
            raise Imbalance(f"{where}: its reader has reported it twice")
        sent = sum(entry.rows_to_shard.values())
        if entry.rows_in != entry.rejected_by_reader + sent:
            raise Imbalance(
                f"{where}: {entry.rows_in:,} rows came in, {entry.rejected_by_reader:,} were rejected by the reader and {sent:,} "
                "sent to shards"
            )
        records = sum(read.records for read in entry.reads)
        if records != entry.rows_in:
            raise Imbalance(f"{where}: {entry.rows_in:,} rows came in, its reads took {records:,}")
        poll.entry = entry
        self.rows_in += entry.rows_in
        step.rows_in += entry.rows_in
        if entry.poll > reader.behind_poll:
            reader.behind, reader.behind_poll = entry.behind, entry.poll

    def _answer(self, entry: ShardEntry) -> None:
        _, poll = self._open(entry.reader, entry.poll, f"shard {entry.shard}")
        if entry.shard in poll.answers:
            raise Imbalance(
                f"reader {entry.reader}, poll {entry.poll}: shard {entry.shard} has reported it twice"
            )
        poll.answers[entry.shard] = (entry.accepted, entry.rejected)

    def _take(self) -> None:
        """Puts what window shards told in order."""
        waiting = True
        while waiting:
            waiting = False
            for entry in list(self.taken_later):
                known = self.taken.setdefault(entry.key, dict.fromkeys(entry.before, 0))
                if all(polls <= known.get(reader, 0) for reader, polls in entry.before.items()):
                    self.taken[entry.key] = {
                        reader: max(polls, known.get(reader, 0)) for reader, polls in entry.after.items()
                    }
                    self.taken_later.remove(entry)
                    waiting = True

    def _in_windows(self, reader: int, entry: PollEntry) -> bool:
        """True if all window shards have told what came of a poll."""
        return all(self.taken.get(key, {}).get(reader, 0) > entry.poll for key in range(entry.window_shards))

    def _advance(self, number: int, reader: ReaderAccount, step: Step) -> None:
        """Takes the polls that are done off those that are open."""
        while reader.done in reader.open and reader.open[reader.done].complete:
            entry = reader.open[reader.done].entry
            if entry is None or not self._in_windows(number, entry):
                return
            del reader.open[reader.done]
            reader.done += 1
            reader.watermark = entry.watermark
            reader.position = entry.position
            reader.final = entry.final
            reader.read_at = entry.read_at
            if entry.receipt:
                step.receipts.append(entry.receipt)
            for read in entry.reads:
                range_ = step.reads.setdefault(read.origin, [read.first, read.next])
                range_[:] = min(range_[0], read.first), max(range_[1], read.next)

    def _open(self, number: int, poll: int, who: str) -> tuple[ReaderAccount, OpenPoll]:
        reader = self.readers.setdefault(number, ReaderAccount())
        if poll < reader.done:
            raise Imbalance(
                f"reader {number}, poll {poll}: {who} has reported it again, it was complete already"
            )
        return reader, reader.open.setdefault(poll, OpenPoll())


def add_rejected(total: Rejected, more: Mapping[str, Mapping[str, int]], sign: int = 1) -> None:
    """Adds counts by stage and reason to ``total``, or takes them off."""
    for stage, reasons in more.items():
        of_stage = total.setdefault(stage, {})
        for reason, rows in reasons.items():
            of_stage[reason] = of_stage.get(reason, 0) + sign * rows


def _check(reader: int, number: int, poll: OpenPoll) -> None:
    if poll.entry is None:
        return
    for shard, (accepted, rejected) in sorted(poll.answers.items()):
        sent = poll.entry.rows_to_shard.get(shard)
        if sent is None:
            raise Imbalance(
                f"reader {reader}, poll {number}: shard {shard} has reported, the reader named only "
                f"{len(poll.entry.rows_to_shard)} shards"
            )
        if sent != accepted + rejected:
            raise Imbalance(
                f"reader {reader}, poll {number}: {sent:,} rows were sent to shard {shard}, it accepted {accepted:,} and rejected "
                f"{rejected:,}"
            )


def _total(reasons: Mapping[str, Mapping[str, int]]) -> int:
    return sum(sum(of_stage.values()) for of_stage in reasons.values())


def _who(entries: Sequence[Entry]) -> str:
    polls = sorted({(e.reader, e.poll) for e in entries if isinstance(e, PollEntry | ShardEntry)})
    if not polls:
        return "files without a poll"
    named = "; ".join(f"reader {reader}, poll {poll}" for reader, poll in polls[:4])
    return named if len(polls) <= 4 else f"{named} and {len(polls) - 4} more"
