"""The marketing channel through which a visitor came, by the rules of Google Analytics 4's default channel group.

Source: Google Analytics Help, "[GA4] Default channel group", https://support.google.com/analytics/answer/9756891 – its rules for
manual traffic, in its order, and of its 800 sites the big ones. An event tells its channel by three things, the first that says
something:

1. its page's campaign: ``utm_source``, ``utm_medium`` and ``utm_campaign``, and the ids that advertisers add to a link
   (:data:`CLICK_IDS`). An id stands in for a source or medium that is not stated, never for one that is. Google's own reports ask
   Google Ads what kind of advertisement an id belongs to; here ``gclid`` is paid search.
2. the host of its referrer: organic_search, organic_social, organic_video or organic_shopping if the site is known, else referral.
3. neither: direct.

A referrer of the page's own host (apart from ``www.``) is a step within the site and says nothing new. A webmail's or a document
editor's host is a referral, though it belongs to a search engine.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote_plus

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.transforms.batches import column
from headrace.transforms.distinct import DistinctCache, distinct

NAMES: dict[str, tuple[str, ...]] = {
    "search": ("google", "bing", "yahoo", "yandex", "duckduckgo", "baidu", "ecosia", "qwant", "startpage", "brave", "naver",
               "daum", "sogou", "seznam", "ask", "aol", "kagi"),
    "social": ("facebook", "fb", "instagram", "ig", "threads", "twitter", "x", "linkedin", "pinterest", "reddit", "tiktok",
               "snapchat", "tumblr", "quora", "vk", "weibo", "wechat", "xing", "mastodon", "bluesky", "telegram", "whatsapp"),
    "video": ("youtube", "vimeo", "twitch", "dailymotion", "netflix", "youku"),
    "shopping": ("amazon", "ebay", "etsy", "walmart", "alibaba", "mercadolibre"),
}  # fmt: skip
"""Kind of site → names that ``utm_source`` may have for it."""

HOSTS: dict[str, tuple[str, ...]] = {
    "search": ("bing.com", "search.yahoo.com", "search.yahoo.co.jp", "ya.ru", "duckduckgo.com", "baidu.com", "ecosia.org",
               "qwant.com", "startpage.com", "search.brave.com", "search.naver.com", "search.daum.net", "sogou.com", "so.com",
               "search.seznam.cz", "ask.com", "search.aol.com", "kagi.com", "news.google.com",
               "com.google.android.googlequicksearchbox"),
    "social": ("facebook.com", "fb.com", "fb.me", "messenger.com", "instagram.com", "threads.net", "threads.com", "twitter.com",
               "x.com", "t.co", "linkedin.com", "lnkd.in", "pinterest.com", "pin.it", "reddit.com", "redd.it", "tiktok.com",
               "snapchat.com", "tumblr.com", "quora.com", "vk.com", "ok.ru", "weibo.com", "weibo.cn", "wechat.com", "xing.com",
               "mastodon.social", "bsky.app", "t.me", "telegram.org", "whatsapp.com", "wa.me", "medium.com", "stackoverflow.com",
               "news.ycombinator.com"),
    "video": ("youtube.com", "youtu.be", "vimeo.com", "twitch.tv", "dailymotion.com", "dai.ly", "netflix.com", "youku.com"),
    "shopping": ("etsy.com", "walmart.com", "alibaba.com"),
}  # fmt: skip
"""Kind of site → its domains, each with all that is below it."""

CLICK_IDS: dict[str, tuple[str, str]] = {
    "gclid": ("google", "cpc"),
    "gbraid": ("google", "cpc"),
    "wbraid": ("google", "cpc"),
    "dclid": ("", "display"),
    "msclkid": ("bing", "cpc"),
    "ttclid": ("tiktok", "cpc"),
    "twclid": ("twitter", "cpc"),
    "li_fat_id": ("linkedin", "cpc"),
    "fbclid": ("facebook", ""),
}
"""Parameter → the source and medium it stands for. Facebook adds its own to unpaid links too, so it tells no medium."""

_KIND_OF_NAME = {name: kind for kind, names in NAMES.items() for name in names}
_KIND_OF_HOST = {host: kind for kind, hosts in HOSTS.items() for host in hosts}
_ANY_COUNTRY = re.compile(r"(?:m\.)?(google|yahoo|yandex|pinterest|amazon|ebay)\.(?:com?\.)?[a-z]{2,3}")
"""Sites with a domain in each country, of which the hosts below do something else (``mail.google.com``)."""
_LABELS = max(host.count(".") for host in _KIND_OF_HOST) + 1

_PAID = re.compile(r".*cp.*|ppc|retargeting|paid.*", re.DOTALL)
_SHOP = re.compile(r"(?:[^a-df-z]|^)shop|shopping")
_DISPLAY = frozenset(("display", "banner", "expandable", "interstitial", "cpm"))
_SOCIAL = frozenset(("social", "social-network", "social-media", "sm", "social network", "social media"))
_EMAIL = frozenset(("email", "e-mail", "e_mail", "e mail"))
_HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//(?:[^/?#\\]*@)?(\[[^\]/?#\\]*\]|[^/?#:\\]*)", re.IGNORECASE)
_CACHED_URLS = 16_384


def channels(batch: pa.RecordBatch) -> pa.Array:
    """Returns the channel of each event; the work is per distinct address, and no address is too bad for it.

    Input: ``page_url`` and ``referrer``, as strings or dictionaries; one that is missing is null.
    Output: dictionary<int32, string>. Null where the event says nothing: its referrer is of the page's own host, or it has neither
    page nor referrer. A referrer without a host counts as none. The channels: direct, cross_network, paid_shopping, paid_search,
    paid_social, paid_video, display, paid_other, organic_shopping, organic_social, organic_video, organic_search, referral, email,
    affiliates, audio, sms, mobile_push, and unassigned for a campaign that no rule knows.

    Example:
        >>> found = channels(pa.RecordBatch.from_pydict({
        ...     "page_url": ["https://shop.example/?utm_source=newsletter&utm_medium=Email", "https://shop.example/p/1"],
        ...     "referrer": ["https://shop.example/", "https://www.google.com/"],
        ... }))
        >>> found.to_pylist()
        ['email', 'organic_search']
    """
    pages, page = _classes(column(batch, "page_url"), _LANDINGS)
    referrers, referrer = _classes(column(batch, "referrer"), _REFERRERS)
    pairs = pa.array(page * len(referrers) + referrer).dictionary_encode()
    both = np.divmod(pairs.dictionary.to_numpy(), len(referrers))
    names = [_channel(pages[p], referrers[r]) for p, r in zip(*(x.tolist() for x in both), strict=True)]
    values = pa.array(names, pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(values.indices.take(pairs.indices), values.dictionary)


def _classes(urls: pa.Array, cache: DistinctCache[str]) -> tuple[list[str | None], npt.NDArray[np.int64]]:
    """Returns what the addresses say, each once and None for null, and for each row its place in that list."""
    codes = distinct(urls)
    said: dict[str | None, int] = {None: 0}
    table = [said.setdefault(s, len(said)) for s in cache(codes.dictionary.to_pylist())]
    rows = pc.fill_null(codes.indices, len(table)).to_numpy(zero_copy_only=False)
    return list(said), np.array([*table, 0], np.int64)[rows]


def _channel(landing: str | None, referrer: str | None) -> str | None:
    campaign, _, host = (landing or "").partition(" ")
    if campaign:
        return campaign
    if not referrer:
        return None if landing is None else "direct"
    if referrer == host:
        return None
    kind = site_kind(referrer)
    return f"organic_{kind}" if kind else "referral"


def site_kind(source: str) -> str | None:
    """Returns ``search``, ``social``, ``video`` or ``shopping`` for a lower-case name or host; null for any other."""
    source = source.removeprefix("www.")
    if named := _KIND_OF_NAME.get(source):
        return named
    if national := _ANY_COUNTRY.fullmatch(source):
        return _KIND_OF_NAME[national[1]]
    labels = source.rsplit(".", _LABELS)[-_LABELS:]
    suffixes = (".".join(labels[i:]) for i in range(len(labels) - 1))
    return next((_KIND_OF_HOST[s] for s in suffixes if s in _KIND_OF_HOST), None)


def host_of(url: str) -> str:
    """Returns the host of an address in lower case, without user, port and ``www.``; empty if it has none."""
    match = _HOST.match(url.strip())
    return match[1].lower().rstrip(".").removeprefix("www.") if match else ""


def campaign_channel(query: str) -> str:
    """Returns the channel that the campaign parameters of a query name; empty if there are none."""
    lower = query.lower()
    if not ("utm" in lower or "id=" in lower or "%" in lower):
        return ""
    stated: dict[str, str] = {}
    for pair in lower.split("&"):
        name, _, value = pair.partition("=")
        if "%" in pair or "+" in pair:
            name, value = unquote_plus(name).lower(), unquote_plus(value).lower()
        if value := value.strip():
            stated.setdefault(name, value)
    source, medium = stated.get("utm_source", ""), stated.get("utm_medium", "")
    for name in stated:
        if name in CLICK_IDS:
            source, medium = source or CLICK_IDS[name][0], medium or CLICK_IDS[name][1]
            break
    return _by_rules(source, medium, stated.get("utm_campaign", "")) if source or medium else ""


@lru_cache(maxsize=4096)
def _by_rules(source: str, medium: str, campaign: str) -> str:
    """The rules for manual traffic, in their order."""
    kind, paid = site_kind(source), _PAID.fullmatch(medium)
    shop = kind == "shopping" or _SHOP.search(campaign)
    if source == "(direct)" and medium in ("", "(none)", "(not set)"):
        return "direct"
    if "cross-network" in campaign:
        return "cross_network"
    if paid and (shop or kind):
        return "paid_shopping" if shop else f"paid_{kind}"
    if medium in _DISPLAY:
        return "display"
    if paid:
        return "paid_other"
    if shop:
        return "organic_shopping"
    if kind == "social" or medium in _SOCIAL:
        return "organic_social"
    if kind == "video" or "video" in medium:
        return "organic_video"
    if kind == "search" or medium == "organic":
        return "organic_search"
    return _by_medium(source, medium)


def _by_medium(source: str, medium: str) -> str:
    if medium in ("referral", "app", "link"):
        return "referral"
    if medium in _EMAIL or source in _EMAIL:
        return "email"
    if medium in ("affiliate", "affiliates"):
        return "affiliates"
    if medium == "audio":
        return "audio"
    if "sms" in (medium, source):
        return "sms"
    if medium.endswith("push") or "mobile" in medium or "notification" in medium or source == "firebase":
        return "mobile_push"
    return "unassigned"


def _landings(urls: Sequence[str]) -> list[str]:
    """Returns "channel of the campaign, host" of each page, parted by a blank; either may be empty.

    As texts, because a tuple for each address would keep the garbage collector busy.
    """
    queries = (url.partition("#")[0].partition("?")[2] for url in urls)
    return [
        f"{campaign_channel(query) if query else ''} {host_of(url)}"
        for url, query in zip(urls, queries, strict=True)
    ]


def _hosts(urls: Sequence[str]) -> list[str]:
    return [host_of(url) for url in urls]


_LANDINGS = DistinctCache(_landings, _CACHED_URLS)
_REFERRERS = DistinctCache(_hosts, _CACHED_URLS)
