"""Keeping to a rate by a clock that tests can replace."""

from collections.abc import Callable


class Pacer:
    """Waits until a moment of simulated time has come in wall time; never waits to make up for being late.

    Args:
        seconds_per_ms: wall seconds for each simulated millisecond.
        clock: monotonic seconds.
        sleep: waits for seconds.
    """

    def __init__(
        self, seconds_per_ms: float, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self.seconds_per_ms = seconds_per_ms
        self._clock, self._sleep = clock, sleep
        self._begin: float | None = None

    def wait(self, offset_ms: int) -> None:
        """Returns when ``offset_ms`` of simulated time is due, counted from the first call."""
        now = self._clock()
        if self._begin is None:
            self._begin = now
        delay = self._begin + offset_ms * self.seconds_per_ms - now
        if delay > 0:
            self._sleep(delay)
