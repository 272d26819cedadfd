"""What the simulated shop's world is made of: countries, devices, products, searches, names. Plain tables, no code paths.

Addresses lie in ranges that a regional registry has assigned to the named country, so that a country lookup finds it, or in
the ranges that RFC 5737 and RFC 3849 set aside for documentation. Hosts and mail domains are those of RFC 2606.
"""

from typing import NamedTuple

HOST = "https://shop.rivermart.example"


class Country(NamedTuple):
    """``v4`` are IPv4 prefixes of whole octets, ``v6`` the first two groups of an IPv6 prefix or empty."""

    code: str
    currency: str
    rate: int
    """Units of ``currency`` for 100 EUR."""
    weight: int
    v4: tuple[str, ...]
    v6: str
    places: tuple[tuple[str, str], ...]
    """Region and city."""


class Device(NamedTuple):
    """``app`` is the version of the mobile app, or of the web shop."""

    user_agent: str
    device_type: str
    os_version: str
    platform: str
    screen: str
    app: str


class Product(NamedTuple):
    """``cents`` is the list price in EUR cents."""

    number: int
    id: str
    slug: str
    category: str
    cents: int


COUNTRIES = (
    Country(
        "US",
        "USD",
        108,
        20,
        ("73", "24.16", "98.192", "71.192"),
        "2601:40",
        (("CA", "San José"), ("NY", "Buffalo")),
    ),
    Country(
        "DE", "EUR", 100, 16, ("84.130", "87.140", "91.10"), "2003:c0", (("BE", "Berlin"), ("NW", "Köln"))
    ),
    Country(
        "GB", "GBP", 86, 11, ("86.130", "81.130", "82.1"), "2a00:23c4", (("ENG", "Leeds"), ("SCT", "Glasgow"))
    ),
    Country(
        "FR", "EUR", 100, 9, ("90.10", "82.64", "86.200"), "2a01:e0a", (("IDF", "Paris"), ("ARA", "Lyon"))
    ),
    Country(
        "NL",
        "EUR",
        100,
        5,
        ("84.80", "77.160", "82.72"),
        "2a02:a440",
        (("NH", "Amsterdam"), ("UT", "Utrecht")),
    ),
    Country("ES", "EUR", 100, 4, ("83.40", "88.10"), "2a02:9000", (("MD", "Madrid"), ("CT", "Barcelona"))),
    Country(
        "IT", "EUR", 100, 4, ("79.10", "87.10", "151.20"), "2001:b07", (("25", "Milano"), ("62", "Roma"))
    ),
    Country("JP", "JPY", 17000, 5, ("126.10", "60.64"), "2400:2410", (("13", "東京"), ("27", "大阪"))),
    Country("IN", "INR", 9800, 6, ("117.200", "59.90"), "2409:4050", (("MH", "Mumbai"), ("KA", "Bengaluru"))),
    Country("BR", "BRL", 590, 5, ("177.32", "179.96"), "2804:14c", (("SP", "São Paulo"), ("RJ", "Niterói"))),
    Country("CA", "CAD", 149, 4, ("99.224", "70.24"), "2607:fea8", (("ON", "Toronto"), ("QC", "Montréal"))),
    Country("AU", "AUD", 165, 3, ("1.128", "58.160"), "2001:8003", (("NSW", "Sydney"), ("VIC", "Geelong"))),
    Country("PL", "PLN", 428, 4, ("83.10",), "2a02:a310", (("14", "Warszawa"), ("10", "Łódź"))),
    Country("SE", "SEK", 1130, 3, ("81.230", "90.224"), "2001:2040", (("AB", "Stockholm"), ("M", "Malmö"))),
    Country("CH", "CHF", 94, 3, ("85.0", "178.192"), "2a02:1210", (("ZH", "Zürich"), ("GE", "Genève"))),
    Country("AT", "EUR", 100, 2, ("77.116", "91.112"), "", (("9", "Wien"), ("6", "Graz"))),
    Country("TR", "TRY", 4600, 3, ("88.230", "78.170"), "", (("34", "İstanbul"), ("35", "İzmir"))),
    Country(
        "MX",
        "MXN",
        2050,
        3,
        ("187.130", "189.130"),
        "",
        (("CMX", "Ciudad de México"), ("JAL", "Guadalajara")),
    ),
    Country("KR", "KRW", 155000, 3, ("175.200", "121.130"), "2001:e60", (("11", "서울"), ("26", "부산"))),
    Country("ZA", "ZAR", 1960, 2, ("41.144", "105.224"), "", (("GP", "Johannesburg"), ("WC", "Cape Town"))),
    Country("NG", "NGN", 168000, 2, ("105.112", "102.88"), "", (("LA", "Lagos"), ("KN", "Kano"))),
    Country("NO", "NOK", 1170, 2, ("84.208", "80.212"), "", (("03", "Oslo"), ("46", "Bergen"))),
    Country("PT", "EUR", 100, 2, ("85.240", "2.80"), "", (("11", "Lisboa"), ("13", "Porto"))),
    Country("SG", "SGD", 144, 2, ("116.86", "119.74"), "2406:3003", (("01", "Singapore"),)),
)
DOCUMENTATION_V4 = ("192.0.2", "198.51.100", "203.0.113")
DOCUMENTATION_V6 = "2001:db8"

_WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
_WINDOWS = f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_WEBKIT}"
_MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
_IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS {} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
_ANDROID = "Mozilla/5.0 (Linux; Android {}) " + _WEBKIT


def _browser(user_agent: str, os_version: str, screen: str) -> Device:
    return Device(user_agent, "desktop", os_version, "web", screen, "2026.1.3")


def _phone(user_agent: str, os_version: str, platform: str, screen: str, kind: str = "mobile") -> Device:
    return Device(user_agent, kind, os_version, platform, screen, "4.8.1" if platform == "ios" else "4.7.0")


DEVICES = (
    _browser(f"{_WINDOWS} Chrome/143.0.0.0 Safari/537.36", "Windows 11", "1920x1080"),
    _browser(f"{_WINDOWS} Chrome/142.0.0.0 Safari/537.36", "Windows 10", "2560x1440"),
    _browser(f"{_WINDOWS} Chrome/143.0.0.0 Safari/537.36 Edg/143.0.0.0", "Windows 11", "1536x864"),
    _browser(f"{_WINDOWS} Chrome/142.0.0.0 Safari/537.36 OPR/126.0.0.0", "Windows 10", "1366x768"),
    _browser(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:146.0) Gecko/20100101 Firefox/146.0",
        "Windows 10",
        "1920x1080",
    ),
    _browser(
        f"{_MAC} AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Safari/605.1.15",
        "macOS 15.6",
        "1512x982",
    ),
    _browser(f"{_MAC} {_WEBKIT} Chrome/143.0.0.0 Safari/537.36", "macOS 14.7", "1728x1117"),
    _browser("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Linux", "1920x1200"),
    _browser(
        f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {_WEBKIT} Chrome/142.0.0.0 Safari/537.36",
        "ChromeOS",
        "1366x768",
    ),
    _phone(
        f"{_IPHONE.format('18_6')} Version/18.6 Mobile/15E148 Safari/604.1", "iOS 18.6", "ios", "1179x2556"
    ),
    _phone(
        f"{_IPHONE.format('17_7')} Version/17.7 Mobile/15E148 Safari/604.1", "iOS 17.7", "ios", "1170x2532"
    ),
    _phone(
        f"{_IPHONE.format('18_5')} CriOS/142.0.7444.128 Mobile/15E148 Safari/604.1",
        "iOS 18.5",
        "ios",
        "1290x2796",
    ),
    _phone(
        f"{_ANDROID.format('15; Pixel 9')} Chrome/143.0.0.0 Mobile Safari/537.36",
        "Android 15",
        "android",
        "1080x2424",
    ),
    _phone(
        f"{_ANDROID.format('14; SM-S921B')} Chrome/142.0.0.0 Mobile Safari/537.36",
        "Android 14",
        "android",
        "1080x2340",
    ),
    _phone(
        f"{_ANDROID.format('14; SM-A546B')} SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
        "Android 14",
        "android",
        "1080x2408",
    ),
    _phone(
        f"{_ANDROID.format('13; M2101K6G')} Chrome/141.0.0.0 Mobile Safari/537.36",
        "Android 13",
        "android",
        "720x1600",
    ),
    _phone(
        "Mozilla/5.0 (Android 15; Mobile; rv:146.0) Gecko/146.0 Firefox/146.0",
        "Android 15",
        "android",
        "1080x2400",
    ),
    _phone(
        "Mozilla/5.0 (iPad; CPU OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6"
        " Mobile/15E148 Safari/604.1",
        "iOS 18.6",
        "ios",
        "1640x2360",
        "tablet",
    ),
    _phone(
        f"{_ANDROID.format('14; SM-X710')} Chrome/142.0.0.0 Safari/537.36",
        "Android 14",
        "android",
        "1600x2560",
        "tablet",
    ),
)
BOTS = tuple(
    _browser(user_agent, "Linux", "1024x768")
    for user_agent in (
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        f"{_ANDROID.format('6.0.1; Nexus 5X Build/MMB29P')} Chrome/142.0.7444.59 Mobile Safari/537.36"
        " (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
        "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
        "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
        "Mozilla/5.0 (compatible; SemrushBot/7~bl; +http://www.semrush.com/bot.html)",
        "DuckDuckBot/1.1; (+http://duckduckgo.com/duckduckbot.html)",
        "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
        "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
        f"{_WEBKIT}; compatible; GPTBot/1.2; +https://openai.com/gptbot",
        "python-requests/2.32.3",
        "curl/8.11.1",
    )
)

_ADJECTIVES = ("light", "classic", "urban", "trail", "nordic", "compact", "vintage", "organic", "pro", "mini")
_THINGS = {
    "shoes": ("runner", "sneaker", "boot", "sandal", "loafer", "slipper"),
    "electronics": ("headphones", "keyboard", "charger", "speaker", "camera", "monitor"),
    "home": ("lamp", "blanket", "kettle", "rug", "shelf", "mug"),
    "outdoor": ("tent", "backpack", "stove", "hammock", "bottle", "headlamp"),
    "fashion": ("jacket", "scarf", "jeans", "shirt", "beanie", "dress"),
    "beauty": ("serum", "soap", "perfume", "comb", "balm", "mask"),
    "toys": ("puzzle", "robot", "kite", "blocks", "drone", "yoyo"),
    "books": ("novel", "atlas", "cookbook", "comic", "diary", "guide"),
}
_BASE_CENTS = {
    "shoes": 5995,
    "electronics": 12990,
    "home": 2490,
    "outdoor": 7450,
    "fashion": 3999,
    "beauty": 1495,
    "toys": 1999,
    "books": 1290,
}
CATEGORIES = tuple(_THINGS)
PRODUCTS = tuple(
    Product(
        number,
        f"P-{1000 + number}",
        f"{adjective}-{thing}",
        category,
        _BASE_CENTS[category] * (55 + number * 37 % 190) // 100,
    )
    for number, (adjective, (category, thing)) in enumerate(
        (adjective, (category, _THINGS[category][place]))
        for place in range(6)
        for adjective in _ADJECTIVES
        for category in CATEGORIES
    )
)
"""480 products; the first are the most popular."""

QUERIES = (
    "running shoes", "trail runner 43", "winter jacket", "noise cancelling headphones", "usb-c charger", "desk lamp",
    "größe 42 schuhe", "zelt 2 personen", "sac à dos", "lampe de chevet", "zapatillas running", "regalo navidad",
    "スニーカー", "キャンプ テント", "운동화", "geschenk für kinder", "puzzle 1000 pieces", "cookbook italian",
    "yoga mat", "\"nordic\" blanket", "kettle 1.5l", "camera under 300", "rug 160x230", "organic soap", "wool scarf",
    "mechanical keyboard", "kids drone", "vintage poster", "gift card", "c++ guide \\ beginners",
)  # fmt: skip
REFERRERS = (
    "https://www.google.com/", "https://www.google.com/", "https://www.bing.com/", "https://duckduckgo.com/",
    "https://www.facebook.com/", "https://www.instagram.com/", "https://t.co/Zx8kQ1", "https://www.youtube.com/",
    "https://news.ycombinator.com/", "https://blog.gearweekly.example/best-of-2025",
)  # fmt: skip
CAMPAIGNS = (
    "utm_source=newsletter&utm_medium=email&utm_campaign=january",
    "utm_source=google&utm_medium=cpc&utm_campaign=brand&utm_term=rivermart",
    "utm_source=instagram&utm_medium=social&utm_campaign=winter_sale",
    "utm_source=partner42&utm_medium=affiliate&utm_campaign=outdoor&utm_content=banner%20a",
    "utm_source=facebook&utm_medium=paid_social&utm_campaign=retargeting",
)
PAYMENT_METHODS = (
    "credit_card",
    "credit_card",
    "credit_card",
    "paypal",
    "invoice",
    "apple_pay",
    "bank_transfer",
)
DISCOUNTS = (("WELCOME10", 90), ("WINTER20", 80), ("FRIENDS5", 95))
"""Code and the per cent of the price that is left."""
CUSTOM_DATA = (
    '{"experiment":{"name":"checkout_v2","variant":"B"}}',
    '{"scroll_depth":0.75,"time_on_page_ms":18234}',
    '{"tags":["sale","new",null],"position":3}',
    '{"nested":{"a":{"b":{"c":[1,2.5,{"d":true}]}}}}',
    '["list",1,false,null]',
    '"plain text"',
    "42",
    "null",
    '{"note":"Grüße aus Köln – 👟"}',
    '{"viewport":{"w":390,"h":844},"dark_mode":true}',
)
"""Any JSON value."""
SYMBOLS = (
    ("RVM", 4125),
    ("NWX", 18790),
    ("ACM", 990),
    ("ZEN", 31240),
    ("ORB", 6675),
    ("KLT", 250),
    ("PYX", 12555),
)
"""Symbol and its price in cents."""
VENUES = ("XETR", "XNAS", "XLON", "XPAR")
COUNTERPARTIES = (
    "Rivermart GmbH",
    "Stadtwerke Nord",
    "Café Lumière",
    "M. Okafor",
    "Harbour Rentals Ltd",
    "P. Nowak",
)
PURPOSES = ("order", "monthly rent", "invoice", "salary", "refund", "subscription", "transfer to savings")
FIRST_NAMES = (
    "anna",
    "ben",
    "chloe",
    "david",
    "elif",
    "farid",
    "grace",
    "hugo",
    "ines",
    "jonas",
    "kim",
    "lucia",
)
LAST_NAMES = (
    "schmidt",
    "okafor",
    "garcia",
    "nowak",
    "dubois",
    "tanaka",
    "rossi",
    "yilmaz",
    "silva",
    "larsson",
    "singh",
)
MAIL_DOMAINS = ("example.com", "example.org", "example.net")
CARD_PREFIXES = ("400000", "411111", "555555", "510510")
"""Issuer prefixes of the networks' published test numbers."""
