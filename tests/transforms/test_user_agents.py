"""User agents: known ones, families of rules, rows against distinct values."""

import pyarrow as pa
import pytest

from headrace.transforms.user_agents import Agent, UserAgents

CHROME = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"
IPAD = (
    "Mozilla/5.0 (iPad; CPU OS 13_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/13.0 Mobile/15E148 "
    "Safari/604.1"
)


@pytest.fixture(scope="module")
def agents() -> UserAgents:
    made = UserAgents()
    made.setup()
    return made


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        (CHROME, Agent("Chrome", "Windows", "desktop", False)),
        (IPAD, Agent("Mobile Safari", "iOS", "tablet", False)),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/17.2 Mobile/15E148 Safari/604.1",
            Agent("Mobile Safari", "iOS", "mobile", False),
        ),
        (
            "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Mobile Safari/537.36",
            Agent("Chrome Mobile", "Android", "mobile", False),
        ),
        (
            "Mozilla/5.0 (Linux; Android 12; SM-X906C) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36",
            Agent("Chrome", "Android", "tablet", False),
        ),
        (
            "Mozilla/5.0 (Linux; Android 9; CUBOT Build/PPR1) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/90.0.1.2 Mobile "
            "Safari/537.36",
            Agent("Chrome Mobile", "Android", "mobile", False),
        ),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:27.0) Gecko/20100101 Firefox/27.0", Agent("Firefox", "Linux", "desktop", False)),
        ("Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; Tablet PC 2.0)", Agent("IE", "Windows", "desktop", False)),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", Agent("Googlebot", None, None, True)),
        ("curl/8.5.0", Agent("curl", None, None, True)),
        ("python-requests/2.31.0", Agent("Python Requests", None, None, True)),
        ("Go-http-client/1.1", Agent("Go-http-client", None, None, True)),
        ("Mozilla/5.0 (compatible; Ezooms/1.0; help@moz.com)", Agent(None, None, None, True)),
        ("Feedbin - 1 subscribers", Agent("Feedbin", None, None, True)),
        ("Mozilla/5.0 (SMART-TV; Linux; Tizen 6.0) AppleWebKit/537.36", Agent(None, "Tizen", None, False)),
        ("Dalvik/2.1.0 (Linux; U; Android 12; M2101)", Agent("Android", "Android", None, False)),
        ("nonsense", Agent(None, None, None, False)),
        ("", Agent(None, None, None, None)),
        ("  ", Agent(None, None, None, None)),
        ("-", Agent(None, None, None, None)),
    ],
)  # fmt: skip
def test_what_a_user_agent_says(agents: UserAgents, user_agent: str, expected: Agent) -> None:
    assert agents.describe(user_agent) == expected


@pytest.mark.parametrize("encode", [False, True])
def test_columns_follow_the_rows(agents: UserAgents, encode: bool) -> None:
    rows = pa.array([IPAD, None, CHROME, "nonsense", "", IPAD, "curl/8.5.0"])
    columns, unknown = agents.columns(rows.dictionary_encode() if encode else rows)
    described = [
        agents.describe(v) if v is not None else Agent(None, None, None, None) for v in rows.to_pylist()
    ]
    for name in Agent._fields:
        assert columns[name].to_pylist() == [getattr(d, name) for d in described]
    assert unknown == 2, "nonsense and the empty one"
    assert columns["browser"].type == pa.dictionary(pa.int32(), pa.string())
    assert agents.columns(rows.slice(2, 0))[0]["is_bot"].to_pylist() == []
    assert agents.columns(pa.nulls(2))[1] == 0
