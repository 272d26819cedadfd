"""The scanner against Presidio's own recognisers on every cell, and a scanner that loses something."""

import random
from unittest.mock import patch

import pyarrow as pa
import pytest
import tldextract
from faker import Faker
from hypothesis import given, settings
from hypothesis import strategies as st
from presidio_analyzer.predefined_recognizers import CreditCardRecognizer, EmailRecognizer

from headrace.transforms import pii_patterns
from headrace.transforms.pii_patterns import CARD, EMAIL, REDACTED, PatternScanner

from .digits import UNREADABLE


class Plain:
    """Presidio's two recognisers on a cell, nothing in between; the suffix list is the installed snapshot."""

    def __init__(self) -> None:
        self._recognisers = ((EmailRecognizer(), EMAIL), (CreditCardRecognizer(), CARD))
        self._suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())

    def findings(self, text: str) -> list[tuple[int, int, str]] | str:
        found = []
        with patch.object(tldextract, "extract", self._suffixes):
            for recogniser, label in self._recognisers:
                try:
                    found += [
                        (r.start, r.end, label)
                        for r in recogniser.analyze(text, recogniser.supported_entities)
                    ]
                except ValueError:
                    return REDACTED
        return sorted(found)


@pytest.fixture(scope="module")
def scanner() -> PatternScanner:
    made = PatternScanner()
    made.setup()
    return made


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain()


def scrubbed(scanner: PatternScanner, text: str) -> str:
    return scanner.scrub(pa.array([text])).to_pylist()[0]


def differences(scanner: PatternScanner, plain: Plain, cells: list[str]) -> list[str]:
    """Returns the cells in which the scanner's findings, as it comes by them, are not Presidio's."""
    suspicious = scanner.suspicious(pa.array(cells, pa.string()))
    bad = []
    for cell, flag in zip(cells, suspicious, strict=True):
        try:
            ours = [tuple(f) for f in scanner.findings(cell)] if flag else []
        except ValueError:
            ours = REDACTED
        if ours != plain.findings(cell):
            bad.append(cell)
    return bad


def adversarial(n: int, seed: int) -> list[str]:
    """E-mails, cards and look-alikes, mutilated: foreign digits and separators, letters lost, swapped and doubled."""
    rng = random.Random(seed)
    Faker.seed(seed)
    fakers = [Faker(x) for x in ("en_US", "de_DE", "fr_FR")]
    bases = (0x660, 0x6F0, 0x966, 0xFF10, 0x1D7CE, 0x1E950, ord(UNREADABLE))
    separators = ["-", " ", "  ", ".", "\u00a0", "\u2010", "\u200b", "/", "_", "", "\n", "+", "--"]
    around = ["", " ", "card: ", "email=", "http://", "é", "中", "_", '"', "<", "/p?q=", "@", "1", ","]

    def one() -> str:
        fake = rng.choice(fakers)
        digits = str(rng.randrange(10 ** rng.randint(9, 19)))
        text = rng.choice(
            [fake.email(), fake.credit_card_number(), fake.url() + "p?m=" + fake.email(), digits]
        )
        if text.isdigit() and rng.random() < 0.5:
            text = rng.choice(separators).join(text[i : i + 4] for i in range(0, len(text), 4))
        kind = rng.random()
        if kind < 0.25:
            base = rng.choice(bases)
            text = "".join(
                chr(base + int(c)) if c.isascii() and c.isdigit() and rng.random() < 0.3 else c for c in text
            )
        elif kind < 0.4:
            text = "".join(c + (rng.choice(separators) if rng.random() < 0.1 else "") for c in text)
        elif kind < 0.6:
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["", "@", ".", "-", "é", "\uff20", "\u0301", "K", "ſ"])
                + text[at + 1 :]
            )
        elif kind < 0.7:
            text = text.upper()
        return rng.choice(around) + text + rng.choice(around)

    return [" ".join(one() for _ in range(rng.choice((1, 1, 2)))) for _ in range(n)]


def test_findings_are_presidios_on_adversarial_cells(scanner: PatternScanner, plain: Plain) -> None:
    cells = adversarial(2000, 7)
    found = [plain.findings(c) for c in cells]
    assert sum(map(bool, found)) > 600
    assert any(f == REDACTED for f in found)
    assert differences(scanner, plain, cells) == []


ALPHABETS = st.sampled_from(
    ["a@.b-c+ ", "41-1 5٣3", "é@ü.dé_‿", "!#%&'*@/=?.x", "0123456789- ", "a@b.com%4 0"]
)


@settings(max_examples=200, deadline=None)
@given(text=ALPHABETS.flatmap(lambda a: st.text(a, max_size=40)))
def test_findings_are_presidios_on_any_text(scanner: PatternScanner, plain: Plain, text: str) -> None:
    assert differences(scanner, plain, [text]) == []


@pytest.mark.parametrize(
    ("attribute", "broken"),
    [
        ("SUSPICIOUS", "@example"),
        ("SUSPICIOUS", "@|[0-9]{16}"),
        ("_CARD", pii_patterns.regex.compile("[0-9]{16}")),
        ("_ADDRESS", pii_patterns.regex.compile("(?<=[a-z])@(?=[a-z]+[.]com)")),
    ],
)
def test_a_prefilter_that_loses_findings_is_caught(
    scanner: PatternScanner, plain: Plain, attribute: str, broken: object
) -> None:
    cells = adversarial(300, 8)
    assert differences(scanner, plain, cells) == []
    with patch.object(pii_patterns, attribute, broken):
        assert len(differences(scanner, plain, cells)) > 2


def test_every_finding_of_presidio_is_replaced(scanner: PatternScanner, plain: Plain) -> None:
    """What is left of a cell has no finding, unless two stood so close that Presidio saw one of them only."""
    for cell in adversarial(600, 9):
        clean = scrubbed(scanner, cell)
        found = plain.findings(cell)
        if found == REDACTED:
            assert clean == REDACTED
            continue
        for start, end, label in found:
            text = cell[start:end]
            assert (text if label == CARD else text[text.index("@") - 1 :]) not in clean.replace(EMAIL, "")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("write ann@example.com, bob@example.org!", "write [email], [email]!"),
        ("card 4111 1111 1111 1111 and 4111-1111-1111-1112", "card [card] and 4111-1111-1111-1112"),
        ("https://shop.example/p?email=ann.b+x@example.com&n=1", "https://shop.example/p?email=[email]&n=1"),
        ("/p?email=ann%40example.com&n=1", "/p?email=[email]&n=1"),
        ("/p?email=ann%2Bx%40example%2Ecom#top", "/p?email=[email]#top"),
        (
            "/go?to=%2Flogin%3Fmail%3Dann%2540example.com%26n%3D1",
            "/go?to=%2Flogin%3Fmail%3D[email]%26n%3D1",
        ),
        ("/u/ann@example.com/edit", "/u/[email]/edit"),
        ("/pay?c=4111111111111111&n=1", "/pay?c=[card]&n=1"),
        ("/pay?c=4111+1111+1111+1111", "/pay?c=[card]"),
        ("/pay?c=4111%201111%201111%201111", "/pay?c=[card]"),
        ("/pay?c=4111%2D1111%2d1111-1111", "/pay?c=[card]"),
        ("/pay?c=%34111111111111111", "/pay?c=[card]"),
        ("https://ann:s3cret@example.com/x", "https://[credentials]@example.com/x"),
        ("https://ann:s3@cret@example.com/x", "https://[credentials]@example.com/x"),
        ("https://tok3n@localhost:80/x", "https://[credentials]@localhost:80/x"),
        ("https://ann@example.com/x", "https://[email]/x"),
        (
            "/r?u=https%3A%2F%2Fann%3Apw%40host.example%2F",
            "/r?u=https%3A%2F%2F[credentials]%40host.example%2F",
        ),
        ("4111111111111111@example.com", "[email]"),
        ("ann@localhost", "ann@localhost"),
        ("ann@example.notasuffix", "ann@example.notasuffix"),
        ("/p/%FF%40%zz?id=1234567890123456", "/p/%FF%40%zz?id=1234567890123456"),
        ("", ""),
    ],
)
def test_what_a_cell_becomes(scanner: PatternScanner, cell: str, expected: str) -> None:
    assert scrubbed(scanner, cell) == expected
    assert scrubbed(scanner, expected) == expected


def test_digits_that_the_checksum_cant_read_cost_the_cell() -> None:
    scanner = PatternScanner()
    scanner.setup()
    cell = "4" + UNREADABLE * 15
    assert scanner.scrub(pa.array([cell, None, "fine", cell])).to_pylist() == [
        REDACTED,
        None,
        "fine",
        REDACTED,
    ]
    assert scanner.counts == {"masked_cells": 2, "redacted_cells": 2}


@pytest.mark.parametrize(
    "cell", ["a.a." * 5000 + "@x", "a." * 9000 + "@x.com " + "a@" * 5000, "x@y.de," * 800]
)
def test_long_cells_take_linear_time(scanner: PatternScanner, cell: str) -> None:
    """Presidio's pattern alone takes minutes for the first one."""
    expected = cell.replace("x@y.de", EMAIL)
    assert scrubbed(scanner, cell) == expected


def test_slices_nulls_and_empty_arrays(scanner: PatternScanner) -> None:
    array = pa.array(["x", "a@b.com", None, "c@d.com", "y"])
    assert scanner.scrub(array.slice(1, 3)).to_pylist() == [EMAIL, None, EMAIL]
    assert scanner.scrub(array.slice(0, 0)).to_pylist() == []
    assert scanner.scrub(pa.nulls(2, pa.string())).to_pylist() == [None, None]
    assert array.to_pylist() == ["x", "a@b.com", None, "c@d.com", "y"]


def test_suffix_list_is_never_downloaded(scanner: PatternScanner) -> None:
    with patch("requests.Session.get", side_effect=AssertionError("network")):
        fresh = PatternScanner()
        fresh.setup()
        assert scrubbed(fresh, "ann@example.co.uk") == EMAIL
