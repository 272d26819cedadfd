from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runners.flink_server import FlinkServer, serve_flink


@pytest.fixture
def bare_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cluster, no Prism and no credentials of whoever runs the tests; returns the home folder."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in (
        "HEADRACE_CACHE",
        "HEADRACE_CLUSTER_DIR",
        "HEADRACE_PRISM",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_CONFIG",
    ):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def flink() -> Iterator[FlinkServer]:
    """Flink's REST service with one running job."""
    with serve_flink() as server:
        yield server
