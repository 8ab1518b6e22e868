"""One thing that the check of a site finds. Owns the shape; `check_texts` has the words."""

import msgspec

from madang.policy.facility.check_texts import TEXTS, Severity


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, doubtful or missing.

    Attributes:
        rule: its name in `check_texts.TEXTS`.
        place: the piece of equipment, or the table of the file.
        values: what fills the words.
    """

    rule: str
    place: str
    values: dict[str, str] = {}

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return TEXTS[self.rule].severity

    def why(self, language: str = "en") -> str:
        """Return what is wrong, in `en` or `ko`."""
        text = TEXTS[self.rule]
        return self._fill(text.why_ko if language == "ko" else text.why_en)

    def next_step(self, language: str = "en") -> str:
        """Return what to do, in `en` or `ko`."""
        text = TEXTS[self.rule]
        return self._fill(text.next_ko if language == "ko" else text.next_en)

    def _fill(self, text: str) -> str:
        return text.format(**{"place": self.place, **self.values})


def find(rule: str, place: str, **values: object) -> Finding:
    """Return a finding; numbers of watts are written in kW."""
    return Finding(rule=rule, place=place, values={name: _word(value) for name, value in values.items()})


def _word(value: object) -> str:
    return f"{value / 1000:.2f} kW" if isinstance(value, float) else str(value)
