"""Exit codes of the command line, and which error ends with which."""

import re
from collections.abc import Iterator

from headrace.schemas.errors import ConfigError, HeadraceError, InputError

DONE = 0
INVALID = 1
WRONG_USE = 2
UNTRUSTED = 3
INTERRUPTED = 130

EXIT_CODES = {
    DONE: "done",
    INVALID: "invalid data, or nothing found, where a verdict was asked for",
    WRONG_USE: "wrong use or configuration, or an input that can't be read at all",
    UNTRUSTED: "the output can't be trusted: it is not whole, or its ledger does not balance",
    INTERRUPTED: "interrupted with Ctrl-C",
}

_BEAM_SUFFIX = re.compile(r" \[while running '[^']*'\]$")


def verdict(error: BaseException) -> tuple[int, str] | None:
    """Returns exit code and message for an error that the user can act on; None if it is a fault of ours.

    Beam wraps what a worker raises, so the causes are looked at too: the first error of headrace among them counts, else the first
    of the operating system.
    """
    chain = list(_chain(error))
    for found in chain:
        if isinstance(found, HeadraceError):
            code = WRONG_USE if isinstance(found, ConfigError | InputError) else UNTRUSTED
            return code, _message(found)
    for found in chain:
        if isinstance(found, OSError) and found.strerror and found.filename is not None:
            return (
                UNTRUSTED,
                f"{_message(found)}; the run did not finish. Run the same command again once that is mended",
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop(0)
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            todo += [current.__cause__, current.__context__]


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return _BEAM_SUFFIX.sub("", str(error))
