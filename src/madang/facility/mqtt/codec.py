"""Payloads of plain topics to raw numbers and back, and what a profile's refs mean.

Owns refs, JSON pointers, words that stand for numbers. Refuses to open connections and to know quantities. Called by
the driver and by the twin. Packets are `packets`'s, Sparkplug B is `sparkplug`'s.

A ref is `TOPIC` (the payload is the number), `TOPIC#/json/pointer` (RFC 6901), or `spb:DEVICE:METRIC` with an empty
DEVICE for metrics of the edge node itself. `{base}` in a topic is the device's option `base`.
"""

import json
import math

import msgspec

from madang.core import Rejected
from madang.facility.mqtt.sparkplug import Key
from madang.facility.profile import PointSpec

PAYLOAD_BYTES_MAX = 64 * 1024
_DEPTH_MAX = 32
_NUMBER_BYTES_MAX = 64
_WHOLE_MAX = 2**53


class Place(msgspec.Struct, frozen=True):
    """Where a plain point is: a topic, and a pointer into its JSON; an empty one: the payload as a whole."""

    topic: str
    pointer: tuple[str, ...] = ()


def parse_ref(spec: PointSpec, base: str) -> Place | Key:
    """Return what a ref means; raises Rejected for one that means nothing."""
    if spec.ref.startswith("spb:"):
        _, _, rest = spec.ref.partition(":")
        device, colon, name = rest.partition(":")
        if not colon or not name:
            raise Rejected(f"{spec.name}: {spec.ref!r} is no metric", next_step="write spb:DEVICE:METRIC")
        return Key(device, name)
    topic, mark, pointer = spec.ref.partition("#")
    if mark and not pointer.startswith("/"):
        raise Rejected(f"{spec.name}: {spec.ref!r} has no JSON pointer", next_step="write TOPIC#/name")
    return Place(fill_topic(topic, base), tuple(_unescape(one) for one in pointer.split("/")[1:]))


def fill_topic(topic: str, base: str) -> str:
    """Return a topic with the device's base; raises Rejected for what is none."""
    if "{base}" in topic and not base:
        raise Rejected(f"{topic} needs the option `base`", next_step="name the device's part of the topic in options")
    topic = topic.replace("{base}", base)
    if not topic or any(sign in topic for sign in "+#\0"):
        raise Rejected(f"{topic!r} is no topic", next_step="write it without + and #")
    return topic


def _unescape(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")


def words_of(spec: PointSpec) -> dict[str, float]:
    """Return the numbers that words stand for: options `word.ON = 1`."""
    return {key.removeprefix("word."): float(value) for key, value in spec.options.items() if key.startswith("word.")}


def parse_json(payload: bytes) -> object:
    """Return a payload's JSON; raises ValueError for what is none, is too deep or too large."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"more than {PAYLOAD_BYTES_MAX} bytes")
    try:
        return json.loads(payload)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_number(spec: PointSpec, place: Place, payload: bytes) -> tuple[float | None, str]:
    """Return the raw number of a point in a message, or None with the reason."""
    if not place.pointer:
        if len(payload) > _NUMBER_BYTES_MAX:
            return None, f"{place.topic} says more than a number"
        try:
            found: object = payload.decode().strip()
        except UnicodeDecodeError:
            return None, f"{place.topic} is no text"
        return _number(spec, found, place)
    try:
        found = parse_json(payload)
    except ValueError:
        return None, f"{place.topic} is no JSON"
    for token in place.pointer[:_DEPTH_MAX]:
        if isinstance(found, dict) and token in found:
            found = found[token]
        elif isinstance(found, list) and token.isascii() and token.isdigit() and int(token[:9]) < len(found):
            found = found[int(token[:9])]
        else:
            return None, f"{place.topic} has no /{'/'.join(place.pointer)}"
    return _number(spec, found, place)


def _number(spec: PointSpec, found: object, place: Place) -> tuple[float | None, str]:
    words = words_of(spec)
    if isinstance(found, str) and found in words:
        return words[found], ""
    if isinstance(found, bool):
        return float(found), ""
    if isinstance(found, str) and "_" in found:
        return None, f"{place.topic} says {found[:40]!r}, no number"
    if not isinstance(found, int | float | str):
        return None, f"{place.topic} says no number" if found is not None else f"{place.topic} says null"
    try:
        value = float(found)
    except (ValueError, OverflowError):
        return None, f"{place.topic} says {str(found)[:40]!r}, no number"
    return (value, "") if math.isfinite(value) else (None, f"{place.topic} gives no finite number")


def encode_command(spec: PointSpec, raw: float) -> bytes:
    """Return the payload of a command: the number or its word, within `{command_key: …}` where the profile has one."""
    value: float | int | str = int(raw) if abs(raw) < _WHOLE_MAX and raw == int(raw) else raw
    value = next((word for word, number in words_of(spec).items() if number == raw), value)
    key = spec.options.get("command_key")
    return (json.dumps({str(key): value}) if key else str(value)).encode()


def command_topic(spec: PointSpec, base: str) -> str:
    """Return where commands of a plain point go; raises Rejected where the profile says nothing."""
    topic = str(spec.options.get("command_topic", ""))
    if not topic:
        raise Rejected(f"{spec.name}: what can be commanded needs the option `command_topic`")
    return fill_topic(topic, base)
