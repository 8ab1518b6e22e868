"""What things cost: tariffs by service and class, from a day on. Refuses to compute: `madang.policy.pricing` does.

Money is an integer number of micro-won, 10^-6 KRW, everywhere. Prices are net of VAT; VAT is added on an invoice, once,
on its sum.
"""

import msgspec

from madang.core import ServiceName
from madang.model.priority import PriorityClass

MICRO_WON_PER_WON = 1_000_000
VAT_PERMILLE = 100
"""Korean value-added tax, 10 % (Value-Added Tax Act, article 30)."""


class Tariff(msgspec.Struct, frozen=True, kw_only=True):
    """What one service costs in one class from one day on, until a later tariff of the same pair begins.

    Attributes:
        tariff_id: `<service>.<priority>.<valid_from>`, named on every receipt.
        valid_from: first day, Korean time (UTC+9), `YYYY-MM-DD`.
        prompt_micro_won_per_million, completion_micro_won_per_million: for a million tokens read and written.
        request_micro_won: for each completed request, whatever it reads and writes; for models without tokens.
        audio_second_micro_won: for each begun second of sound.
        image_micro_won, sample_micro_won: for each row of a batch, where the model is counted in it.
    """

    tariff_id: str
    service: ServiceName
    priority: PriorityClass
    valid_from: str
    prompt_micro_won_per_million: int = 0
    completion_micro_won_per_million: int = 0
    request_micro_won: int = 0
    audio_second_micro_won: int = 0
    image_micro_won: int = 0
    sample_micro_won: int = 0
