"""What keeping an image costs: the part that is not free, to the nearest nano, however it is split."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cunho_rules.limits import GIB
from cunho_rules.model import Region
from cunho_rules.pricing import license_nanos_per_hour, quote

sizes = st.integers(0, 500 * GIB)
prices = st.integers(0, 10**10)


def region(nanos: int, free_bytes: int) -> Region:
    return Region("here", "Here", "INTERNATIONAL", "EUR", nanos, free_bytes, 0, ["here-1"])


regions = st.builds(region, prices, sizes)


@pytest.mark.rule("CUS-6")
@pytest.mark.parametrize(
    ("nanos", "free_bytes", "size_bytes", "stored_bytes", "free", "total"),
    [
        (120_000_000, 4 * GIB, 5 * GIB, 0, 4 * GIB, 120_000_000),
        (120_000_000, 4 * GIB, 5 * GIB, 3 * GIB, 1 * GIB, 480_000_000),
        (120_000_000, 4 * GIB, 5 * GIB, 4 * GIB, 0, 600_000_000),
        (120_000_000, 4 * GIB, 5 * GIB, 400 * GIB, 0, 600_000_000),
        (120_000_000, 50 * GIB, 5 * GIB, 0, 5 * GIB, 0),
        (20_000_000, 0, 5 * GIB, 0, 0, 100_000_000),
        (20_000_000, 0, GIB // 2, 0, 0, 10_000_000),
        (20_000_000, 0, 0, 0, 0, 0),
        (1, 0, GIB // 2 - 1, 0, 0, 0),
        (1, 0, GIB // 2, 0, 0, 1),  # half a nano is one
        (10**10, 0, 500 * GIB, 0, 0, 5 * 10**12),
    ],
)
def test_a_quote_is_storage_times_size_less_what_is_left_of_the_allowance(
    nanos: int, free_bytes: int, size_bytes: int, stored_bytes: int, free: int, total: int
) -> None:
    found = quote(region(nanos, free_bytes), size_bytes, stored_bytes)
    assert found == ("here", size_bytes, "EUR", nanos, free, total)


@pytest.mark.rule("CUS-6")
@given(regions, sizes, sizes)
def test_what_is_charged_is_exact_to_the_nearest_nano(of: Region, size_bytes: int, stored_bytes: int) -> None:
    found = quote(of, size_bytes, stored_bytes)
    exact = Fraction((size_bytes - found.free_bytes) * of.image_storage_nanos, GIB)
    assert abs(found.monthly_nanos - exact) <= Fraction(1, 2)
    assert 0 <= found.free_bytes <= size_bytes
    assert found.free_bytes + stored_bytes <= max(of.image_storage_free_bytes, stored_bytes)


@pytest.mark.rule("CUS-6")
@given(regions, sizes, sizes, sizes)
def test_two_images_cost_as_much_as_one_of_their_size(of: Region, first: int, second: int, stored: int) -> None:
    whole, one, other = quote(of, first + second, stored), quote(of, first, stored), quote(of, second, stored + first)
    assert one.free_bytes + other.free_bytes == whole.free_bytes
    assert abs(one.monthly_nanos + other.monthly_nanos - whole.monthly_nanos) <= 1


@pytest.mark.rule("CUS-6")
@given(regions, sizes, sizes, sizes)
def test_who_stores_more_never_pays_less(of: Region, size: int, stored: int, more: int) -> None:
    assert quote(of, size, stored).monthly_nanos <= quote(of, size, stored + more).monthly_nanos
    assert quote(of, size, stored).monthly_nanos <= quote(of, size + more, stored).monthly_nanos


@pytest.mark.rule("PUB-6")
@pytest.mark.parametrize(
    ("public", "os_family", "jurisdiction", "fee"),
    [
        (True, "WINDOWS", "INTERNATIONAL", 46),
        (True, "WINDOWS", "MAINLAND_CHINA", 0),
        (True, "LINUX", "INTERNATIONAL", 0),
        (False, "WINDOWS", "INTERNATIONAL", 0),
        (True, "OTHER", "INTERNATIONAL", 0),
    ],
)
def test_a_licence_fee_is_for_public_windows_outside_mainland_china(
    public: bool, os_family: str, jurisdiction: str, fee: int
) -> None:
    found = license_nanos_per_hour(
        public=public, os_family=os_family, jurisdiction=jurisdiction, windows_license_nanos=46
    )
    assert found == fee
