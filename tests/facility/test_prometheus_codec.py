"""Expositions are taken apart whatever they are; a ref says which series make a number, and doubt is never a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.facility.redfish_parts import device_of

from madang.core import Rejected
from madang.facility.profile import PointSpec, Profile, list_profiles, load_profile
from madang.facility.prometheus import codec, exposition
from madang.facility.prometheus.exposition import OPEN_METRICS, parse, render_sample
from madang.model import Quantity

TEXT = "text/plain; version=0.0.4"
NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,10}", fullmatch=True)
LABELS = st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True), st.text(max_size=12), max_size=4)


def spec(ref, **options):
    return PointSpec(name="x", quantity=Quantity.COUNT, ref=ref, options=options)


def number(ref, body, kind=TEXT, now_s=0.0, **options):
    """Return what a ref makes of an exposition: the raw number and the reason."""
    one = spec(ref, **options)
    profile = Profile(name="x", driver="prometheus", title="x", points=(one,))
    [target] = codec.make_targets(profile, device_of("prometheus", "x"))
    found = codec.read_number(target, parse(body.encode(), kind, {codec.NOW, *target.families}), now_s)
    return found.raw, found.reason


@pytest.mark.parametrize("name", list_profiles("prometheus"))
def test_every_profile_is_sound(name):
    profile = load_profile("prometheus", name)
    options = dict.fromkeys(codec.options_of(profile), "x")
    parts = {one.part: "unit1" for one in profile.points if one.part}
    targets = codec.make_targets(profile, device_of("prometheus", name, parts=parts, options=options))
    assert len(targets) == len(profile.points)
    assert len({one.point_id for one in targets}) == len(targets), "two rows of one host would have one name"
    for target in targets:
        assert target.spec.context, "what is about a host says what of it"
        assert set(target.spec.options) <= {"type", "bit", "needs", "written", "written_s_max"}


@given(st.binary(max_size=400), st.sampled_from([TEXT, OPEN_METRICS, "text/html", ""]))
def test_arbitrary_bytes_are_series_or_trouble(data, kind):
    found = parse(data, kind, {"a"})
    assert not (found.trouble and found.series)


@given(st.text(st.sampled_from('a{}="\\,# 1.e+-\n\tNanif'), max_size=200))
def test_what_is_nearly_an_exposition_is_series_or_trouble(text):
    for kind in (TEXT, OPEN_METRICS):
        found = parse(text.encode(), kind, {"a", "aa", "an"})
        assert not (found.trouble and found.series)
        raw, reason = number("a", text, kind)
        assert raw is not None or reason


@given(NAMES, LABELS, st.floats())
def test_a_series_goes_there_and_back(name, labels, value):
    found = parse(f"{render_sample(name, labels, value)}\n".encode(), TEXT, {name})
    assert found.trouble == ""
    [series] = found.series[name]
    assert (series.labels, series.is_twice) == (labels, False)
    assert series.value == value or (math.isnan(series.value) and math.isnan(value))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_several_series_become_what_the_word_says(values):
    body = "".join(f'a{{n="{n}"}} {value!r}\n' for n, value in enumerate(values))
    for word, join in (("min", min), ("max", max), ("sum", sum)):
        assert number(f"{word} a", body) == (join(values), "")
    raw, reason = number("a", body)
    assert (raw is None) == (len(values) > 1)
    assert len(values) == 1 or reason == f"{len(values)} series are a, and nobody knows which one is meant"


@pytest.mark.parametrize(
    ("body", "trouble"),
    [
        ("<html>\n", "line 2 of the answer is no series: '<html>'"),
        ("a 1 1 1\n", "is no series"),
        ("a 1_0\n", "a value that is no number"),
        ("a 0x10\n", "a value that is no number"),
        ("a\n", "is no series"),
        ("a 1\r\n", "a value that is no number"),
        ("a 1 1.5\n", "a time that is none"),
        ('a{x="1} 1\n', "is no series"),
        ("a{x=1} 1\n", "labels that are none"),
        ('a{x="1" y="2"} 1\n', "labels that are none"),
        ('a{x="1",x="2"} 1\n', "a label twice"),
        ('a{x="1"} 1 # {id="2"} 1\n', "an exemplar"),
        ("a" * (exposition.LINE_CHARACTERS_MAX + 1) + " 1\n", "is over 16384 characters"),
        ("a{" + ",".join(f'l{n}="1"' for n in range(exposition.LABELS_MAX + 1)) + "} 1\n", "more than 32 labels"),
        ("".join(f'a{{n="{n}"}} 1\n' for n in range(exposition.SERIES_MAX + 1)), "one more than the 4096 series"),
        ("b 1\n" * exposition.LINES_MAX, "more than 20000 lines"),
        ("#" * exposition.BYTES_MAX + "\n", f"over {exposition.BYTES_MAX} bytes"),
    ],
)
def test_one_line_that_is_none_makes_the_whole_answer_none(body, trouble):
    found = parse(("a 1\n" + body).encode(), TEXT, {"a"})
    assert trouble in found.trouble
    assert not found.series


@pytest.mark.parametrize(
    "body",
    [
        "a{" + ",".join(f'l{n}="1"' for n in range(exposition.LABELS_MAX)) + "} 1\n",
        "".join(f'a{{n="{n}"}} 1\n' for n in range(exposition.SERIES_MAX)),
        "b 1\n" * (exposition.LINES_MAX - 1),
        "b" * (exposition.LINE_CHARACTERS_MAX - 2) + " 1\n",
    ],
)
def test_what_is_at_its_bounds_is_taken(body):
    assert parse(body.encode(), TEXT, {"a"}).trouble == ""


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("a 1", 1.0),
        ("a\t1.5e3 ", 1500.0),
        ("a{} .5", 0.5),
        ('a{x="{\\"} \\\\ \\n",} +2. 1700000000000', 2.0),
        ('a { x = "1" , y = "2" } -3', -3.0),
    ],
)
def test_what_the_format_allows_is_read(line, value):
    assert number("a", f"# HELP a b c\n# anything\n\n  \n{line}\n") == (value, "")


def test_labels_are_unescaped():
    found = parse(b'a{x="{\\"} \\\\ \\n \\q"} 1\n', TEXT, {"a"})
    assert found.series["a"][0].labels == {"x": '{"} \\ \n \\q'}


def test_a_series_that_is_given_twice_is_none_and_others_are_well():
    body = 'a{x="1",y="2"} 1\na{y="2",x="1"} 1\na{x="2"} 3\nb 4\n'
    assert number('a{x="1"}', body)[0] is None
    assert "twice, and nobody knows which one holds" in number('a{x="1"}', body)[1]
    assert number("sum a", body)[0] is None
    assert number('a{x="2"}', body) == (3.0, "")


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-inf"])
@pytest.mark.parametrize("ref", ["min a", "max a", "sum a", 'a{n="1"}', 'a{n="1"} / b', 'b / a{n="1"}'])
def test_what_is_not_finite_is_never_lost_among_others(value, ref):
    raw, reason = number(ref, f'a{{n="0"}} 1\na{{n="1"}} {value}\na{{n="2"}} 2\nb 4\n')
    assert raw is None
    assert "no number" in reason


def test_a_label_that_is_absent_counts_as_empty_and_others_can_be_excluded():
    body = 'a{x="1"} 1\na{y="1"} 2\n'
    assert number('a{x=""}', body) == (2.0, "")
    assert number('a{x!=""}', body) == (1.0, "")
    assert number('a{x!="1",y="1"}', body) == (2.0, "")


def test_ratios_and_differences():
    body = 'free{m="/"} 25\nsize{m="/"} 100\nnone{m="/"} 0\n'
    assert number('free{m="/"} / size{m="/"}', body) == (0.25, "")
    assert number('size{m="/"} - free{m="/"}', body) == (75.0, "")
    assert number('free{m="/"} / none{m="/"}', body) == (None, 'none{m="/"} is 0: nothing can be divided by it')
    assert number('free{m="/"} / gone', body) == (None, "the exporter has no gone")


def test_the_first_choice_that_the_exporter_has_is_taken():
    assert number("old | new", "new 2\n") == (2.0, "")
    assert number("old | new", "new 2\nold 1\n") == (1.0, "")
    assert number("old | new", "b 1\n") == (None, "the exporter has no old")
    assert number("old | new", "new 2\nold NaN\n")[0] != 2.0


def test_bits_of_a_set_of_flags():
    assert [number("a", "a 5\n", bit=bit)[0] for bit in range(4)] == [1.0, 0.0, 1.0, 0.0]
    for odd in ("-1", "1.5", "1e+300"):
        assert number("a", f"a {odd}\n", bit=0) == (None, f"{odd} is no set of flags")


@pytest.mark.parametrize("value", ["NaN", "Inf"])
def test_flags_that_are_not_finite_are_none(value):
    raw, reason = number("a", f"a {value}\n", bit=0)
    assert raw is None
    assert reason


@pytest.mark.parametrize(
    ("kind", "head", "reason"),
    [
        (TEXT, "# TYPE a_total counter\n", ""),
        (TEXT, "", ""),
        (TEXT, "# TYPE a_total untyped\n", ""),
        (TEXT, "# TYPE a_total gauge\n", "the exporter calls a_total a gauge"),
        (OPEN_METRICS, "# TYPE a counter\n", ""),
        (OPEN_METRICS, "# TYPE a gauge\n", "the exporter calls a_total a gauge"),
    ],
)
def test_what_is_declared_as_something_else_than_a_counter_is_doubted(kind, head, reason):
    assert number("a_total", f"{head}a_total 3\n# EOF\n", kind, type="counter") == (3.0, reason)


def test_open_metrics_has_an_end_exemplars_and_times_in_seconds():
    body = 'a_total{x="1"} 3 1700000000.5 # {id="a b"} 0.5 1.5\n# EOF\n'
    found = parse(body.encode(), OPEN_METRICS, {"a_total"})
    assert found.trouble == ""
    assert (found.series["a_total"][0].value, found.series["a_total"][0].at_s) == (3.0, 1700000000.5)
    assert "it was cut off" in parse(b"a_total 3\n", OPEN_METRICS, {"a_total"}).trouble


def test_milliseconds_become_seconds():
    assert parse(b"a 1 1700000000500\n", TEXT, {"a"}).series["a"][0].at_s == 1700000000.5


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "a b",
        "avg a",
        "a{x=1}",
        'a{x~"1"}',
        'a{x="1"',
        "a / b / c",
        "a * b",
        "a | ",
        'a{x="1 | 2"}',
        "1a",
        "a" * 1001,
    ],
)
def test_what_selects_no_series_is_rejected(ref):
    with pytest.raises(Rejected):
        codec.parse_ref(spec(ref), {})


@pytest.mark.parametrize(
    ("name", "value"), [("bit", -1), ("bit", 32), ("bit", "x"), ("written_s_max", 0), ("written_s_max", "x")]
)
def test_options_that_mean_nothing_are_rejected(name, value):
    profile = Profile(name="x", driver="prometheus", title="x", points=(spec("a", **{name: value}),))
    with pytest.raises(Rejected, match=name):
        codec.make_targets(profile, device_of("prometheus", "x"))


def test_a_row_that_the_site_names_is_filled_in_and_one_that_it_does_not_is_asked_for():
    [choice] = codec.parse_ref(spec('a{device="{disk0}"}'), {"disk0": 'a "b" {disk0}'})
    assert choice.first.matchers[0].text == 'a "b" {disk0}'
    with pytest.raises(Rejected, match="which one is disk0"):
        codec.parse_ref(spec('a{device="{disk0}"}'), {"disk1": "sda"})
