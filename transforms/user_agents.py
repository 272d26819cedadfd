"""Browser, operating system, device type and bot flag from a user agent, per distinct value."""

import re
from typing import NamedTuple

import pyarrow as pa
from ua_parser.core import Domain
from ua_parser.loaders import load_lazy_builtins
from ua_parser.regex import Resolver

from headrace.transforms.distinct import DistinctCache, distinct

BOT_PATTERNS = (
    r"(?<!cu)bot(?:\b|[_/-])",
    r"crawl",
    r"spider",
    r"slurp",
    r"\b(?:curl|wget|libwww-perl|lwp-[a-z]+|httpie|axios|node-fetch|undici|scrapy|nutch|heritrix|jakarta)\b",
    r"\bpython(?:-requests|-urllib|-httpx|/)",
    r"\b(?:aiohttp|httpx|pycurl|mechanize)/",
    r"\bgo-http-client\b",
    r"^java/|\bapache-httpclient\b",
    r"^(?:ruby|php|perl)\b",
    r"\b(?:headlesschrome|phantomjs|puppeteer|playwright|selenium)\b",
    r"\b(?:pingdom|uptimerobot|statuscake|site24x7|nagios|check_http|zabbix|blackbox-exporter|kube-probe)",
    r"\b(?:facebookexternalhit|whatsapp|telegrambot|slackbot|embedly|mediapartners-google|feedfetcher|feedburner|feedparser)",
    r"\b(?:validator|archiver|fetcher|scanner|zgrab|masscan|nmap|nikto|sqlmap)\b",
    r"\b(?:libfetch|portscout|http_request2|feedbin|flipboardrss|\d+ (?:subscribers?|readers?))\b",
    r"https?://|[\w.+-]@[\w-]",
    r"\b(?:universalfeedparser|tiny tiny rss|feedly|newsblur|magpierss|simplepie)\b",
)
"""Case-insensitive; beside ua-parser's device family "Spider": clients that no person looks at. "bot" is not the phone maker Cubot.
A web or mail address in a user agent is how a robot says whose it is; no browser has one."""

DESKTOP_SYSTEMS = frozenset(
    ("Windows", "Mac OS X", "Mac OS", "Linux", "Ubuntu", "Chrome OS", "Fedora", "Debian", "Red Hat", "CentOS", "SUSE",
     "Arch Linux", "Gentoo", "Linux Mint", "Mandriva", "Slackware", "FreeBSD", "OpenBSD", "NetBSD", "Solaris")
)  # fmt: skip
"""ua-parser's families of systems that run on desktops and notebooks."""

_BOT = re.compile("|".join(BOT_PATTERNS), re.IGNORECASE)
_TELEVISION = re.compile(
    r"smart-?tv|hbbtv|apple ?tv|googletv|android tv|\baft[a-z]+\b|web0s|\bbravia\b|roku|crkey", re.I
)
_TABLET = re.compile(
    r"\bipad\b|\btablet\b(?! pc)|\bplaybook\b|\bkindle\b|\bsilk\b(?!.*\bmobile\b)|\bnexus (?:7|9|10)\b|\bsm-[tx]\d{3}",
    re.I,
)
_MOBILE = re.compile(
    r"\bmobi|\biphone\b|\bipod\b|windows phone|iemobile|blackberry|\bbb10\b|opera mini|\bsymbian|\bseries ?[46]0\b|\bj2me\b|"
    r"\bmidp\b|\bup\.browser\b|\bnokia",
    re.I,
)
_CACHED_AGENTS = 65_536


class Agent(NamedTuple):
    """What a user agent says; null where it does not."""

    browser: str | None
    os: str | None
    device_type: str | None
    """mobile, desktop or tablet; null for bots, televisions and what can't be told."""
    is_bot: bool | None


class UserAgents:
    """Describes user agents with ua-parser's patterns (uap-core) on its Rust engine; remembers 65,536 to 131,072 of them.

    ``device_type`` goes by the usual tokens: ``iPad``, ``Tablet`` (not ``Tablet PC``) or Android without ``Mobile`` is a
    tablet, ``Mobi`` or ``iPhone`` is mobile, a desktop system is desktop; Android's ``Dalvik`` client does not say. ``is_bot`` is
    true if ua-parser calls the device a "Spider" or one of :data:`BOT_PATTERNS` matches. An empty user agent (also blank or
    ``-``) says nothing: all null.
    """

    def setup(self) -> None:
        """Compiles the patterns (0.2 s)."""
        self._resolve = Resolver(load_lazy_builtins())
        self._known: DistinctCache[Agent] = DistinctCache(
            lambda values: [self.describe(v) for v in values], _CACHED_AGENTS
        )

    def describe(self, user_agent: str) -> Agent:
        """Returns what one user agent says; not cached."""
        if user_agent.strip() in ("", "-"):
            return Agent(None, None, None, None)
        result = self._resolve(user_agent, Domain.ALL)
        system = result.os.family if result.os else None
        spider = result.device is not None and result.device.family == "Spider"
        is_bot = spider or _BOT.search(user_agent) is not None
        brand = result.device.brand if result.device else None
        return Agent(
            result.user_agent.family if result.user_agent else None,
            system,
            None if is_bot else _device_type(user_agent, system, brand),
            is_bot,
        )

    def columns(self, user_agents: pa.Array) -> tuple[dict[str, pa.Array], int]:
        """Returns the columns browser, os, device_type (dictionaries) and is_bot for the rows, and how many rows have a user agent
        of which ua-parser knows nothing."""
        codes = distinct(user_agents)
        agents = [a or Agent(None, None, None, None) for a in self._known(codes.dictionary.to_pylist())]
        columns: dict[str, pa.Array] = {}
        for name in ("browser", "os", "device_type"):
            values = pa.array([getattr(a, name) for a in agents], pa.string()).dictionary_encode()
            columns[name] = pa.DictionaryArray.from_arrays(
                values.indices.take(codes.indices), values.dictionary
            )
        columns["is_bot"] = pa.array([a.is_bot for a in agents], pa.bool_()).take(codes.indices)
        unknown = pa.array([a.browser is None and a.os is None for a in agents], pa.bool_())
        return columns, unknown.take(codes.indices).true_count


def _device_type(user_agent: str, system: str | None, brand: str | None) -> str | None:
    if _TELEVISION.search(user_agent):
        return None
    if _TABLET.search(user_agent) or brand == "Generic_Android_Tablet":
        return "tablet"
    if _MOBILE.search(user_agent):
        return "mobile"
    if system == "Android":
        return None if user_agent.startswith("Dalvik/") else "tablet"
    return "desktop" if system in DESKTOP_SYSTEMS else None
