"""Errors that a user of the library can act on."""


class HeadraceError(Exception):
    """Base of every error that headrace raises on purpose."""


class ConfigError(HeadraceError, ValueError):
    """A wrong argument, option, configuration key or schema; the message names it, the value and the fix."""


class InputError(HeadraceError):
    """An input that can't be read at all (missing, no permission, a directory where a file is expected)."""


class UntrustedRunError(HeadraceError):
    """The run's output can't be trusted, for example because its ledger does not balance."""
