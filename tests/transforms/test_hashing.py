"""Vectorised hashes of columns, where the other tests do not look."""

from datetime import date
from decimal import Context, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.hashing import decimal_limbs, hash_values, int64_values, mix64


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50))
def test_mix64_is_one_to_one(values):
    array = np.array(values, np.uint64)
    assert len(set(mix64(array, 3).tolist())) == len(values)
    assert array.tolist() == values


def test_mix64_spreads_neighbours_over_all_bits():
    mixed = mix64(np.arange(4096, dtype=np.uint64), 0)
    ones = [int(((mixed >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)]
    assert min(ones) > 1850 and max(ones) < 2250


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-(10**38) + 1, 10**38 - 1)), max_size=20), st.integers(0, 2))
def test_decimal_limbs_are_the_twos_complement(values, offset):
    array = pa.array(
        [None if v is None else Decimal(v).scaleb(-9, Context(prec=60)) for v in values], pa.decimal128(38, 9)
    )
    limbs = decimal_limbs(array.slice(offset))
    expected = [((v or 0) % 2**128) for v in values[offset:]]
    assert [int(low) | int(high) << 64 for low, high in limbs] == expected


def test_int64_values_of_other_types():
    assert int64_values(pa.array([True, None, False])).tolist() == [1, 0, 0]
    assert int64_values(pa.array([date(1970, 1, 2), None])).tolist() == [1, 0]
    assert int64_values(pa.array([-5, None], pa.int32())).tolist() == [-5, 0]


def test_null_is_zero_and_values_are_not():
    for array in (
        pa.array(["", None]),
        pa.array([0, None]),
        pa.array([False, None]),
        pa.array([Decimal(0), None]),
    ):
        hashes = hash_values(array, 1)
        assert hashes[0] != 0 and hashes[1] == 0
    assert hash_values(pa.nulls(2), 1).tolist() == [0, 0]


def test_a_type_without_a_hash_is_refused():
    with pytest.raises(TypeError, match=r"a column of type list<.*> can't be hashed; cast it"):
        hash_values(pa.array([[1]]), 0)
