"""What an image costs. Amounts are nanos: 1e-9 of the currency's unit, as integers."""

from typing import NamedTuple

from cunho_rules.limits import GIB
from cunho_rules.model import Region


class Quote(NamedTuple):
    """The price of keeping a custom image. Source: CUS-6."""

    region_id: str
    size_bytes: int
    currency: str
    storage_nanos_per_gib_month: int
    #: Bytes of the size that are free of charge.
    free_bytes: int
    monthly_nanos: int


def quote(region: Region, size_bytes: int, stored_bytes: int) -> Quote:
    """The price of `size_bytes` more, for an account that stores `stored_bytes` of custom images in the region.

    Moving bytes between regions is free (CUS-7), so a quote has no part for it. Source: CUS-6.
    """
    allowance_bytes = max(0, region.image_storage_free_bytes - stored_bytes)
    free_bytes = min(size_bytes, allowance_bytes)
    charged = (size_bytes - free_bytes) * region.image_storage_nanos
    return Quote(
        region.region_id,
        size_bytes,
        region.currency,
        region.image_storage_nanos,
        free_bytes,
        (charged + GIB // 2) // GIB,
    )


def license_nanos_per_hour(*, public: bool, os_family: str, jurisdiction: str, windows_license_nanos: int) -> int:
    """The licence fee of an image per running hour; 0 if it is free.

    Source: PUB-6. Inside mainland China Windows is free whatever the price table says.
    """
    charged = public and os_family == "WINDOWS" and jurisdiction != "MAINLAND_CHINA"
    return windows_license_nanos if charged else 0
