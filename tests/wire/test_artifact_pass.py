"""Passes for artifacts: only the two sites, only that path, only for a while."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected, SiteId
from madang.wire.artifact_pass import LIFETIME_S, ArtifactPass, open_artifact_pass, seal_artifact_pass

KEY = bytes(range(32))
PATH = f"/artifacts/{'ab' * 32}"
PASS = ArtifactPass(
    asking_site=SiteId("gumi"), serving_site=SiteId("daegu"), path=PATH, issued_at_s=1_780_000_000.0, kid="a/b"
)
GOLDEN = (
    "hqthc2tpbmdfc2l0ZaRndW1prHNlcnZpbmdfc2l0ZaVkYWVndaRwYXRo2UsvYXJ0aWZhY3RzL2FiYWJhYmFiYWJhYmFiYWJhYmFi"
    "YWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWKraXNzdWVkX2F0X3PLQdqGKUAAAACja2lko2EvYqd2"
    "ZXJzaW9uAQ.tjfTC6gIaaL44WX_XP9A9Zzrn654pkzbH5j4i5_SwGM"
)


def opened(header, keys=None, *, site="daegu", path=PATH, now_s=1_780_000_001.0):
    return open_artifact_pass(header, {"a/b": KEY} if keys is None else keys, serving_site=site, path=path, now_s=now_s)


def test_a_pass_has_these_bytes_and_opens():
    header = seal_artifact_pass(PASS, KEY)
    assert header == GOLDEN
    assert opened(GOLDEN) == PASS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keys": {}}, "does not hold"),
        ({"keys": {"a/b": bytes(32)}}, "does not verify"),
        ({"site": "pohang"}, "of site daegu"),
        ({"path": "/artifacts/" + "cd" * 32}, "is for"),
        ({"now_s": PASS.issued_at_s + LIFETIME_S + 1}, "too old"),
        ({"now_s": PASS.issued_at_s - LIFETIME_S - 1}, "too old"),
    ],
)
def test_anything_else_is_refused(changes, words):
    with pytest.raises(Rejected, match=words):
        opened(seal_artifact_pass(PASS, KEY), **changes)


@given(st.text(max_size=300))
def test_arbitrary_text_opens_nothing(text):
    with pytest.raises(Rejected):
        opened(text)


@given(st.data())
def test_no_changed_letter_opens(data):
    header = seal_artifact_pass(PASS, KEY)
    index = data.draw(st.integers(0, len(header) - 1))
    letter = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    changed = header[:index] + letter + header[index + 1 :]
    try:
        assert opened(changed) == PASS  # the last letter of base64 may hold bits that do not count
    except Rejected:
        assert changed != header
