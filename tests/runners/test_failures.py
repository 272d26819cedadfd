import pytest

from headrace.runners.failures import explained
from headrace.schemas.errors import ConfigError, InputError

TRACE = """Pipeline job-1 failed in state FAILED: Traceback (most recent call last):
  File "x.py", line 229, in _loads
ModuleNotFoundError: No module named '{}'
"""


@pytest.mark.parametrize("name", ["headrace", "headrace.transforms"])
def test_workers_without_headrace_are_named_with_the_fix(name: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"workers lack headrace\. .*worker_pool\.py --port") as caught,
        explained(),
    ):
        raise RuntimeError(TRACE.format(name))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_another_missing_module_is_named() -> None:
    with pytest.raises(ConfigError, match="workers lack the module orjson; install it there"), explained():
        raise RuntimeError(TRACE.format("orjson"))


def test_what_pip_refused_on_the_worker_is_passed_on() -> None:
    text = "job failed: Error starting worker: pip can't install workflow.tar.gz on this worker: error: no space\nhint"
    with (
        pytest.raises(ConfigError, match=r"not started; .*pip can't install workflow\.tar\.gz .*\nhint$"),
        explained(),
    ):
        raise RuntimeError(text)


@pytest.mark.parametrize("error", [RuntimeError("disk full"), ValueError(TRACE.format("headrace"))])
def test_any_other_failure_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained():
        raise error
    assert caught.value is error


def test_what_a_worker_elsewhere_raised_is_raised_again() -> None:
    text = (
        "bundle failed:\nTraceback (most recent call last):\n  File x\n"
        "headrace.schemas.errors.InputError: in.jsonl is gone; fetch it again [while running 'ReadStage']\n"
    )
    with pytest.raises(InputError, match=r"^in\.jsonl is gone; fetch it again$"), explained():
        raise RuntimeError(text)
