"""The same visits as lines of a web server's access log in Combined Log Format."""

from datetime import datetime
from random import Random

from headrace.simulator import faults
from headrace.simulator.catalogue import HOST
from headrace.simulator.people import CART, CLICK, DECLINED, PURCHASE, REFUND, Session
from headrace.simulator.writers import Seconds, Writers

_ASSETS = ("/static/app.css", "/static/app.js", "/static/logo.svg", "/favicon.ico", "/static/hero.webp")
_GONE = ("/wp-login.php", "/old/catalog", "/robots.txt.bak", "/p/P-9999/gone")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_POSTS = {CART: "/cart", PURCHASE: "/checkout/pay", DECLINED: "/checkout/pay", REFUND: "/account/returns"}


class _LogSeconds(Seconds):
    def text(self, time: datetime) -> str:
        return f"{time.day:02d}/{_MONTHS[time.month - 1]}/{time:%Y:%H:%M:%S} +0000"


class WeblogWriter:
    """Writes log lines; ``event_type`` tells what the last one was: page_view, asset, request or http_error.

    ``cents`` is always 0: a log knows no prices.
    """

    def __init__(self, rng: Random, writers: Writers) -> None:
        self._random = rng.random
        self._writers = writers
        self._second = _LogSeconds()
        self.event_type = ""
        self.cents = 0

    def __call__(self, session: Session, ms: int, event_id: str) -> str:
        url, referrer = self._writers.visit(session)
        step, draw = session.step, self._random()
        method, target, status, size, kind = (
            "GET",
            url[len(HOST) :],
            "200",
            str(2000 + int(draw * 60_000)),
            "page_view",
        )
        if step in _POSTS:
            method, target, kind = "POST", _POSTS[step], "request"
            status, size = ("302", "-") if step != DECLINED else ("502", "157")
        elif step == CLICK:
            target, kind = _ASSETS[int(draw * len(_ASSETS))], "asset"
            if draw * 1000 % 1 < 0.3:
                status, size = "304", "-"
        elif session.kind == "bot" and draw < 0.08:
            target, status, size = _GONE[int(draw / 0.08 * len(_GONE))], "404", "209"
        elif draw > 0.996:
            status, size = "500", "0"
        self.event_type = kind if status < "400" else "http_error"
        user = session.user_id if step == PURCHASE else "-"
        agent = session.agent.replace("\\", "\\\\").replace('"', '\\"')
        return (
            f'{session.ip} - {user} [{self._second[ms // 1000]}] "{method} {target} HTTP/1.1" {status} {size} '
            f'"{referrer or "-"}" "{agent}"'
        )


def spoil(kind: str, family: str, line: str, rng: Random) -> tuple[str, str]:
    """Applies a fault to a line, as ``faults.spoil`` does to a JSON event."""
    draw = rng.random()
    if kind == "violation":
        return violate(line, draw)
    if kind == "truncated":
        return kind, line[: 1 + int(draw * line.index("]"))]
    return kind, add_pii(line, faults.personal(kind, rng))


def add_pii(line: str, value: str) -> str:
    """Puts a value into the request's query string."""
    target, _, rest = line.partition(" HTTP/1.1")
    return f"{target}{'&' if '?' in target else '?'}contact={value} HTTP/1.1{rest}"


def violate(line: str, draw: float) -> tuple[str, str]:
    """Returns the kind of violation and the line with a status or time that no server writes."""
    head, _, rest = line.partition("[")
    time, _, rest = rest.partition("]")
    if draw < 0.5:
        wrong = ("30/Feb" + time[6:], f"{time[:11]}:25:61:00 +0000", "yesterday")[int(draw * 6)]
        return "bad_timestamp", f"{head}[{wrong}]{rest}"
    request, _, rest = rest.partition('HTTP/1.1" ')
    return "bad_status", f'{head}[{time}]{request}HTTP/1.1" 0{rest[1:]}'
