"""The policy: typed, with the defaults of the house."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.pipelines.config_file import load_settings
from headrace.pipelines.retention.policy import KINDS, Audit, Policy
from headrace.pipelines.settings import dump
from headrace.schemas.errors import ConfigError


def test_defaults_and_the_printed_policy_parses_back(tmp_path: Path) -> None:
    policy = Policy()
    ages = {
        kind: (policy.ages(kind).hot_days, policy.ages(kind).cold_days)
        for kind in ("raw", "aggregates", "users")
    }
    assert ages == {"raw": (7, 90), "aggregates": (30, 730), "users": (90, 90)}
    (tmp_path / "p.yaml").write_text(dump(policy))
    assert load_settings(Policy, tmp_path / "p.yaml") == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rwa: {hot_days: 7, cold_days: 90}", "unknown setting 'rwa'"),
        ("raw: {hot_days: 7}", "'cold_days' is missing"),
        ("raw: {hot_days: 0, cold_days: 1}", "must be 1 or more"),
        ("raw: {hot_days: 9, cold_days: 7}", "cold_days is not less"),
        ("raw: {hot_days: 7 days, cold_days: 90}", "expected integer"),
        ("safety_hours: 0", "must be 1 or more"),
    ],
)
def test_a_wrong_policy_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(Policy, tmp_path / "p.yaml")


def test_the_documented_policy_is_the_default_one_with_cold_places(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "retention.md").read_text()
    (tmp_path / "p.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)[0])
    policy = load_settings(Policy, tmp_path / "p.yaml")
    for kind in KINDS:
        assert replace(policy.ages(kind), cold=None) == Policy().ages(kind)
        ages = Policy().ages(kind)
        assert re.search(rf"^\| `{kind}` \|.*\| {ages.hot_days}, {ages.cold_days}( days)? \|$", page, re.M)
    assert policy.audit == Audit("/archive")
    assert policy.safety_hours == Policy().safety_hours
