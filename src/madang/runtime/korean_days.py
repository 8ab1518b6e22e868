"""Korean public holidays, by which the utility meters.

Owns the one call of the library `holidays`. Refuses to know which of them count (`madang.policy.facility.tariff` does).
Called by whoever prices energy: the hub's invoices of energy.
"""

from collections.abc import Iterable
from datetime import date

import holidays

from madang.policy.facility.tariff import metered_holidays


def korean_holidays(years: Iterable[int]) -> frozenset[date]:
    """Return the public holidays of some years by which energy is metered. Those of later years may still change."""
    return metered_holidays(holidays.country_holidays("KR", years=years, language="en_US"))
