from pathlib import Path

import pytest

from headrace.transforms.keys import Key
from tests.pipelines.backfill.years import Years, make_years


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    Key(path, create=True)
    return path


@pytest.fixture(scope="session")
def years(tmp_path_factory: pytest.TempPathFactory) -> Years:
    return make_years(tmp_path_factory.mktemp("years") / "archive")
