"""What a job server's failure means, where it is the set-up of the workers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.schemas import errors
from headrace.schemas.errors import ConfigError

_REFUSED = re.compile(r"pip can't install \S+ on this worker: .*", re.DOTALL)
"""What :mod:`headrace.runners.worker_pool` answers; pip's output follows."""
_OURS = re.compile(r"^headrace\.schemas\.errors\.(\w+): (.+?)(?: \[while running '[^']*'\])?$", re.MULTILINE)
"""The last line of a worker's traceback, if the error is one of headrace's."""
_MISSING = re.compile(r"ModuleNotFoundError: No module named '(\w+)[\w.]*'")


@contextmanager
def explained() -> Iterator[None]:
    """Turns the failure of a job whose workers lack headrace, or could not be given it, into an error that says how to mend that.

    Beam passes a worker's exception on as the text of a RuntimeError; any other is left as it is.

    Raises:
        ConfigError: the workers lack a module, or pip refused a package there; the failure is its cause.
        HeadraceError: what a worker in another process raised, again as the class that it was there.
    """
    try:
        yield
    except RuntimeError as error:
        refused = _REFUSED.search(str(error))
        if refused:
            raise ConfigError(
                "the workers were not started; mend the package, or install what it needs where the worker pool runs. "
                + refused[0].strip()
            ) from error
        ours = _OURS.findall(str(error))
        if ours:
            name, message = ours[-1]
            raise getattr(errors, name, errors.HeadraceError)(message) from error
        found = _MISSING.findall(str(error))
        if not found:
            raise
        raise ConfigError(missing_on_workers(found[-1])) from error


def missing_on_workers(module: str) -> str:
    """Returns the message for workers that can't import a module."""
    if module != "headrace":
        return (
            f"the workers lack the module {module}; install it there, best with everything that headrace needs, at the launcher's "
            "versions"
        )
    return (
        "the workers lack headrace. The job ships it (--setup_file), but a worker pool of Beam that was started without "
        "--container_executable installs nothing. Start headrace's pool there instead: copy runners/worker_pool.py and run "
        "`python worker_pool.py --port PORT`; or install headrace where the workers run; or use --environment_type=LOOPBACK"
    )
