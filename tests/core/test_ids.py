import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import (
    Rejected,
    SiteId,
    check_entity_id,
    check_site_name,
    make_event_id,
    make_request_id,
    parse_event_id,
    site_of_request,
)

site_names = st.from_regex(r"[a-z0-9_]{1,32}", fullmatch=True)


@given(site_names, st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=16), st.integers(1, 99))
def test_an_event_id_gives_back_its_request_site_and_attempt(site, unix_ms, entropy, attempt):
    request_id = make_request_id(SiteId(site), unix_ms, entropy)
    assert site_of_request(request_id) == site
    assert parse_event_id(make_event_id(request_id, attempt)) == (request_id, attempt)


@given(st.integers(0, 2**47), st.integers(1, 2**20))
def test_request_ids_of_one_site_sort_by_time(unix_ms, later_ms):
    site = SiteId("daegu")
    assert make_request_id(site, unix_ms, b"\xff" * 10) < make_request_id(site, unix_ms + later_ms, b"\0" * 10)


@pytest.mark.parametrize("name", ["", "Daegu", "da-egu", "da.egu", "a" * 33, "대구", "daegu\n", "*", ">"])
def test_a_site_name_outside_the_grammar_is_rejected_with_what_was_expected(name):
    with pytest.raises(Rejected, match="a-z, 0-9 and _"):
        check_site_name(name)


@pytest.mark.parametrize("name", ["", ".a", "a.", "a..b", "A", "a*", "a>", "a/b", "-a", "a" * 64, "a\n"])
def test_an_entity_name_that_is_no_subject_token_is_rejected(name):
    with pytest.raises(Rejected, match="tenant name"):
        check_entity_id("tenant", name)


@pytest.mark.parametrize("name", ["gumi-parts", "qwen2.5-coder-0.5b", "a", "k_1"])
def test_an_entity_name_of_the_grammar_is_returned(name):
    assert check_entity_id("service", name) == name


@given(st.text(max_size=60))
def test_no_text_but_a_well_formed_id_is_taken_apart(text):
    try:
        request_id, attempt = parse_event_id(text)
    except Rejected:
        return
    assert make_event_id(request_id, attempt) == text
