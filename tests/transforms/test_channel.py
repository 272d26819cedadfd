"""Channels, by the rules of Google Analytics 4's default channel group."""

import doctest

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE
from headrace.transforms import channel
from headrace.transforms.channel import CLICK_IDS, HOSTS, NAMES, channels, host_of, site_kind

SHOP = "https://shop.example/p/1"


def found(page_url: str | None, referrer: str | None = None) -> str | None:
    batch = pa.RecordBatch.from_pydict(
        {"page_url": pa.array([page_url], pa.string()), "referrer": pa.array([referrer], pa.string())}
    )
    return channels(batch).to_pylist()[0]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("utm_source=google&utm_medium=cpc", "paid_search"),
        ("utm_source=bing&utm_medium=CPM", "paid_search"),
        ("utm_source=www.google.de&utm_medium=retargeting", "paid_search"),
        ("utm_source=facebook&utm_medium=paid_social", "paid_social"),
        ("utm_source=l.facebook.com&utm_medium=ppc", "paid_social"),
        ("utm_source=youtube&utm_medium=cpv", "paid_video"),
        ("utm_source=youtube&utm_medium=cpc", "paid_video"),
        ("utm_source=blog&utm_medium=paid", "paid_other"),
        ("utm_source=amazon.co.uk&utm_medium=cpc", "paid_shopping"),
        ("utm_source=google&utm_medium=cpc&utm_campaign=Winter%20Shopping", "paid_shopping"),
        ("utm_source=google&utm_medium=cpc&utm_campaign=workshop", "paid_search"),
        ("utm_source=google&utm_medium=cpc&utm_campaign=eshop", "paid_shopping"),
        ("utm_source=google&utm_medium=cpc&utm_campaign=eu_cross-network", "cross_network"),
        ("utm_source=dv360&utm_medium=banner", "display"),
        ("utm_source=dv360&utm_medium=cpm", "display"),
        ("utm_source=ebay", "organic_shopping"),
        ("utm_source=instagram&utm_medium=story", "organic_social"),
        ("utm_source=partner&utm_medium=social-media", "organic_social"),
        ("utm_source=vimeo", "organic_video"),
        ("utm_source=blog&utm_medium=videoclip", "organic_video"),
        ("utm_source=duckduckgo", "organic_search"),
        ("utm_source=intranet&utm_medium=organic", "organic_search"),
        ("utm_source=newsletter&utm_medium=E-Mail", "email"),
        ("utm_source=e_mail", "email"),
        ("utm_source=partner42&utm_medium=affiliate", "affiliates"),
        ("utm_source=partner&utm_medium=link", "referral"),
        ("utm_medium=audio", "audio"),
        ("utm_source=sms", "sms"),
        ("utm_medium=web_push", "mobile_push"),
        ("utm_source=firebase", "mobile_push"),
        ("utm_source=(direct)&utm_medium=(none)", "direct"),
        ("utm_source=newsletter", "unassigned"),
    ],
)
def test_campaigns(query, name):
    assert found(f"{SHOP}?{query}", "https://www.google.com/") == name
    assert found(f"{SHOP}?a=b&{query.upper()}#utm_medium=sms", "https://shop.example/") == name


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("gclid=x", "paid_search"),
        ("wbraid=x", "paid_search"),
        ("msclkid=x", "paid_search"),
        ("dclid=x", "display"),
        ("ttclid=x", "paid_social"),
        ("fbclid=x", "organic_social"),
        ("gclid=x&utm_source=newsletter&utm_medium=email", "email"),
        ("fbclid=x&utm_medium=cpc", "paid_social"),
        ("gclid=", "direct"),
        ("product_id=3", "direct"),
    ],
)
def test_ids_of_advertisers_stand_in_for_what_is_not_stated(query, name):
    assert found(f"{SHOP}?{query}") == name


def test_names_and_values_are_decoded_the_first_value_counts_and_an_empty_one_is_none():
    assert found(f"{SHOP}?utm%5Fmedium=%65mail") == "email"
    assert found(f"{SHOP}?utm_medium=social+network") == "organic_social"
    assert found(f"{SHOP}?utm_medium=email&utm_medium=sms") == "email"
    assert found(f"{SHOP}?utm_medium=&utm_medium=sms") == "sms"
    assert found(f"{SHOP}?utm_source=&utm_medium=%20&utm_campaign=sale") == "direct"
    assert found(f"{SHOP}#?utm_medium=email") == "direct"
    assert found("/landing?utm_medium=email") == "email"


@pytest.mark.parametrize(
    ("referrer", "name"),
    [
        ("https://www.google.com/", "organic_search"),
        ("https://google.co.uk", "organic_search"),
        ("http://www.google.com.br:80/search?q=utm_medium=email", "organic_search"),
        ("android-app://com.google.android.googlequicksearchbox/", "organic_search"),
        ("https://de.search.yahoo.com/x", "organic_search"),
        ("//CN.BING.COM./", "organic_search"),
        ("https://mail.google.com/mail", "referral"),
        ("https://google.com.attacker.example/", "referral"),
        ("https://notfacebook.com/", "referral"),
        ("https://l.facebook.com/l.php", "organic_social"),
        ("https://t.co/Zx8kQ1", "organic_social"),
        ("https://user@www.pinterest.de\\x", "organic_social"),
        ("https://m.youtube.com/", "organic_video"),
        ("https://www.amazon.co.jp/", "organic_shopping"),
        ("https://blog.example/", "referral"),
        ("https://pay.shop.example/", "referral"),
        ("http://[2001:db8::1]:8080/", "referral"),
        ("https://www.shop.example/", None),
        ("HTTP://SHOP.EXAMPLE:8080", None),
        ("", "direct"),
        ("-", "direct"),
        ("about:blank", "direct"),
        ("www.google.com", "direct"),
        ("https:///", "direct"),
        (None, "direct"),
    ],
)
def test_referrers(referrer, name):
    assert found(SHOP, referrer) == name


def test_an_event_without_page_and_referrer_says_nothing():
    assert found(None) is None
    assert found(None, "") is None
    assert found(None, "https://www.bing.com/") == "organic_search"
    assert found("/p/1") == "direct"
    assert found("/p/1", "https://shop.example/") == "referral"


def test_kinds_of_sites_have_no_site_twice():
    for table in (NAMES, HOSTS):
        sites = [site for some in table.values() for site in some]
        assert len(sites) == len(set(sites))
        assert all(site == site.lower() for site in sites)
    assert set(NAMES) == set(HOSTS)
    for kind, hosts in HOSTS.items():
        for host in hosts:
            assert site_kind(host) == site_kind(f"www.{host}") == site_kind(f"a.b.{host}") == kind
            assert site_kind(f"a{host}") is None or host == "x.com"
    assert all(source in ("", *sum(NAMES.values(), ())) for source, _ in CLICK_IDS.values())


def test_rows_encodings_slices_and_missing_columns():
    pages = [SHOP, None, f"{SHOP}?utm_medium=email", SHOP, SHOP, None]
    referrers = [None, None, "https://t.co/a", "https://t.co/a", SHOP, "https://t.co/b"]
    expected = ["direct", None, "email", "organic_social", None, "organic_social"]
    strings = [pa.array(pages), pa.array(referrers)]
    plain = pa.RecordBatch.from_arrays(strings, names=["page_url", "referrer"])
    coded = pa.RecordBatch.from_arrays(
        [a.dictionary_encode() for a in strings], names=["page_url", "referrer"]
    )
    large = pa.RecordBatch.from_arrays([a.cast(pa.large_string()) for a in strings], names=plain.schema.names)
    for batch in (plain, coded, large):
        assert channels(batch).type == CODE
        assert channels(batch).to_pylist() == expected
        assert channels(batch.slice(2, 3)).to_pylist() == expected[2:5]
        assert channels(batch.slice(0, 0)).type == CODE
    assert channels(plain.select(["page_url"])).to_pylist() == [found(page) for page in pages]
    assert channels(plain.select(["referrer"])).to_pylist() == [found(None, url) for url in referrers]
    nulls = pa.RecordBatch.from_pydict({"page_url": pa.nulls(2), "referrer": pa.nulls(2)})
    assert channels(nulls).to_pylist() == [None, None]


URLS = st.one_of(
    st.none(),
    st.text(),
    st.text(alphabet="htps:/?#@[]%&=.utm_mediucplo\\+ \n\x00", max_size=60),
    st.builds(
        "https://{}/?utm_{}={}".format, st.text(max_size=9), st.sampled_from(["source", "medium"]), st.text()
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(URLS, URLS), max_size=8))
def test_no_address_is_too_bad_and_rows_do_not_depend_on_each_other(rows):
    pages, referrers = ([row[i] for row in rows] for i in (0, 1))
    batch = pa.RecordBatch.from_arrays(
        [pa.array(pages, pa.string()), pa.array(referrers, pa.string())], names=["page_url", "referrer"]
    )
    assert channels(batch).to_pylist() == [found(p, r) for p, r in rows]


def test_a_long_address_takes_no_time():
    assert host_of("https://" + "a." * 500_000) == "a." * 499_999 + "a"
    assert found(SHOP, "https://" + "a." * 500_000 + "google.com") == "referral"
    assert found(f"{SHOP}?utm_medium=" + "cp" * 500_000) == "paid_other"


def test_the_example_in_the_documentation():
    assert doctest.testmod(channel, raise_on_error=True).attempted == 2
