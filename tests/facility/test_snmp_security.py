"""What a session of version 3 believes: nothing that is less secured, of another engine, user, request or time."""

import msgspec
import pytest

from madang.facility.snmp import ber, codec, usm
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import AUTH, PRIV, REPORT, RESPONSE, Bind, Pdu, UsmMessage
from madang.facility.snmp.security import UsmSecurity, say_report

ENGINE = b"\x80\x00\x00\x00\x04peer"
WORDS = usm.stretch_passwords("dcim", "auth-words-42", "priv-words-43", "sha256")
OTHERS = usm.stretch_passwords("dcim", "auth-words-99", "priv-words-43", "sha256")
NOW_S = 1000.0


def message(pdu, flags=AUTH | PRIV, words=WORDS, **changes):
    """Return what an agent sends."""
    engine = changes.pop("engine_id", ENGINE)
    given = {"message_id": 7, "engine_id": engine, "boots": 2, "time_s": 500, "user": b"dcim", "auth": b""}
    given |= {
        "salt": b"saltsalt" if flags & PRIV else b"",
        "payload": codec.encode_scoped(engine, b"", codec.encode_pdu(pdu)),
    }
    return usm.seal(UsmMessage(flags=flags, **(given | changes)), words.localise(engine))


def report(number):
    oid = ber.encode_oid(f"1.3.6.1.6.3.15.1.1.{number}.0")
    return Pdu(REPORT, 7, binds=(Bind(oid, ber.COUNTER32, b"\x01"),))


ANSWER = Pdu(RESPONSE, 7, binds=(Bind(ber.encode_oid("1.3.6"), ber.INTEGER, b"\x05"),))


@pytest.fixture
def session():
    """A session that knows its engine and has had one authentic message of it."""
    security = UsmSecurity(WORDS, "")
    assert security.unwrap(message(report(4), flags=0), 7, NOW_S).kind == REPORT
    assert security.unwrap(message(ANSWER), 7, NOW_S) == ANSWER
    return security


def test_the_engine_is_asked_for_first_and_then_requests_are_sealed():
    security = UsmSecurity(WORDS, "")
    asked = codec.decode_message(security.wrap(b"", 7, b"saltsalt", NOW_S, is_write=False))
    assert (asked.engine_id, asked.user, asked.flags) == (b"", b"", codec.REPORTABLE)
    security.unwrap(message(report(4), flags=0), 7, NOW_S)
    pdu = codec.encode_pdu(Pdu(codec.GET, 7))
    sealed = security.wrap(pdu, 7, b"saltsalt", NOW_S + 20, is_write=False)
    found = codec.decode_message(sealed)
    assert (found.flags, found.engine_id, found.boots, found.time_s) == (AUTH | PRIV | codec.REPORTABLE, ENGINE, 2, 520)
    assert codec.decode_scoped(usm.unseal(sealed, found, WORDS.localise(ENGINE)))[2].request_id == 7
    assert pdu not in sealed


@pytest.mark.parametrize(
    "forged",
    [
        message(ANSWER, flags=0),
        message(ANSWER, flags=AUTH),
        message(ANSWER, words=OTHERS),
        message(ANSWER, message_id=8),
        message(ANSWER, engine_id=b"\x80\x00\x00\x00\x04other"),
        message(ANSWER, user=b"somebody"),
        message(ANSWER, boots=1),
        message(ANSWER, time_s=500 - usm.WINDOW_S - 1),
        message(ANSWER, flags=PRIV),
        codec.encode_community(codec.V2C, b"public", codec.encode_pdu(ANSWER)),
    ],
    ids=["plain", "unencrypted", "key", "request", "engine", "user", "boots", "time", "unauthenticated", "version 2c"],
)
def test_a_forged_or_old_answer_is_not_believed(session, forged):
    with pytest.raises(Malformed):
        session.unwrap(forged, 7, NOW_S)
    assert session.unwrap(message(ANSWER), 7, NOW_S) == ANSWER


def test_an_unsigned_report_neither_replaces_an_engine_nor_its_time(session):
    other = message(report(4), flags=0, engine_id=b"\x80\x00\x00\x00\x04other", boots=9, time_s=9)
    assert say_report(session.unwrap(other, 7, NOW_S)) == "the device has another engine id"
    sent = codec.decode_message(session.wrap(b"\xa0\x00", 8, b"saltsalt", NOW_S, is_write=False))
    assert (sent.engine_id, sent.boots, sent.time_s) == (ENGINE, 2, 500)


def test_only_what_a_report_teaches_is_worth_repeating(session):
    assert session.is_worth_repeating(report(2))
    assert not session.is_worth_repeating(report(5))
    assert not session.is_worth_repeating(msgspec.structs.replace(report(2), binds=()))


def test_a_session_that_begins_anew_takes_a_restarted_engine(session):
    session.forget()
    session.unwrap(message(report(4), flags=0, boots=1, time_s=3), 7, NOW_S)
    assert session.unwrap(message(ANSWER, boots=1, time_s=3), 7, NOW_S) == ANSWER
