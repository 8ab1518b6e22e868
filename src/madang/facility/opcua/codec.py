"""OPC UA's words to numbers: what a ref names, what a status code says of a value.

Owns refs, status codes, values of the built-in types. Refuses to import a stack and to open connections. Called by the
driver and by the twin.

A ref is `nsu=URI;s=Name` (also `i=`, `g=`, `b=`), after OPC UA Part 6, 5.3.1.11: by the namespace's URI, since a
server may number its namespaces anew at each start. `{namespace}` is the device's option `namespace`; `i=2258` without
`nsu` is of OPC UA's own namespace. Status codes are those of Part 4, 7.38 and Part 8, 6.
"""

import math
import re
from enum import StrEnum

import msgspec

from madang.core import Rejected
from madang.facility.profile import PointSpec
from madang.model import Quality

OPC_URI = "http://opcfoundation.org/UA/"
GOOD, UNCERTAIN = 0, 1
"""Severities: the two highest bits of a status code (Part 4, 7.38.1)."""
GOOD_LOCAL_OVERRIDE = 0x00960000
UNCERTAIN_SUBSTITUTE_VALUE = 0x40910000
_NAMES = {
    0x80050000: "BadCommunicationError",
    0x800A0000: "BadTimeout",
    0x801F0000: "BadUserAccessDenied",
    0x80310000: "BadNoCommunication",
    0x80340000: "BadNodeIdUnknown",
    0x80350000: "BadAttributeIdInvalid",
    0x803A0000: "BadNotReadable",
    0x803B0000: "BadNotWritable",
    0x803C0000: "BadOutOfRange",
    0x80740000: "BadTypeMismatch",
    0x80890000: "BadConfigurationError",
    0x808A0000: "BadNotConnected",
    0x808B0000: "BadDeviceFailure",
    0x808C0000: "BadSensorFailure",
    0x808D0000: "BadOutOfService",
    0x40900000: "UncertainLastUsableValue",
    UNCERTAIN_SUBSTITUTE_VALUE: "UncertainSubstituteValue",
    0x40920000: "UncertainInitialValue",
    0x40930000: "UncertainSensorNotAccurate",
    0x40940000: "UncertainEngineeringUnitsExceeded",
    0x40950000: "UncertainSubNormal",
    GOOD_LOCAL_OVERRIDE: "GoodLocalOverride",
}
_CODE_MASK = 0xFFFF0000
_REF = re.compile(r"(?:nsu=(?P<uri>[^;]+);)?(?P<kind>[isgb])=(?P<identifier>.+)")
_INT_MAX = 2**32 - 1


class IdKind(StrEnum):
    """How a node is named within its namespace."""

    NUMBER = "i"
    TEXT = "s"
    GUID = "g"
    BYTES = "b"


class NodeRef(msgspec.Struct, frozen=True):
    """A node, whatever number its namespace has today."""

    uri: str
    kind: IdKind
    identifier: str

    def text(self, index: int) -> str:
        """Return the node's id as stacks write it, with the namespace's number of today."""
        return f"ns={index};{self.kind}={self.identifier}"


def parse_ref(spec: PointSpec, namespace: str) -> NodeRef:
    """Return the node that a ref names; raises Rejected for one that names none."""
    if "{namespace}" in spec.ref and not namespace:
        raise Rejected(f"{spec.name}: {spec.ref} needs the option `namespace`", next_step="give the namespace's URI")
    match = _REF.fullmatch(spec.ref.replace("{namespace}", namespace))
    if match is None:
        raise Rejected(f"{spec.name}: {spec.ref!r} is no node", next_step="write nsu=URI;s=NAME, never ns=NUMBER")
    kind, identifier = IdKind(match["kind"]), match["identifier"]
    if kind is IdKind.NUMBER and not (identifier.isascii() and identifier.isdigit() and int(identifier) <= _INT_MAX):
        raise Rejected(f"{spec.name}: {identifier!r} is no number of a node")
    return NodeRef(match["uri"] or OPC_URI, kind, identifier)


def judge_status(code: int) -> tuple[Quality, str]:
    """Return how far a value with this status code may be believed, and why not; the low 16 bits do not count."""
    code &= _CODE_MASK
    said = f"the server says {_NAMES.get(code, f'0x{code:08X}')}"
    if code in (GOOD_LOCAL_OVERRIDE, UNCERTAIN_SUBSTITUTE_VALUE):
        return Quality.SUBSTITUTED, said
    severity = code >> 30
    if severity == GOOD:
        return Quality.GOOD, ""
    return (Quality.UNCERTAIN, said) if severity == UNCERTAIN else (Quality.BAD, said)


def to_number(value: object) -> float | None:
    """Return the number of a value of a built-in type; None for texts, arrays, structures and what is not finite."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
