"""The cpu codec: kernel text to readings, and nothing but None for nonsense."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.chip.cpu import codec

CPUINFO = b"""processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC   Processor

processor\t: 1
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC   Processor
"""
ARM_CPUINFO = b"processor\t: 0\nBogoMIPS\t: 50.0\nCPU implementer\t: 0x41\n"


def test_cpuinfo_gives_model_vendor_and_count():
    assert codec.parse_cpuinfo(CPUINFO) == codec.CpuInfo(model="AMD EPYC Processor", vendor="AuthenticAMD", count=2)
    assert codec.parse_cpuinfo(ARM_CPUINFO) == codec.CpuInfo(model="unknown CPU", vendor="0x41", count=1)


def test_meminfo_is_in_kibibytes():
    info = codec.parse_meminfo(b"MemTotal:       16 kB\nMemFree: 3 kB\nMemAvailable:    5 kB\nHugePages_Total: 0\n")
    assert (info.total_bytes, info.available_bytes) == (16384, 5120)
    assert codec.parse_meminfo(b"MemTotal: many kB\n").total_bytes is None


def test_stat_counts_idle_and_iowait_as_not_busy():
    times = codec.parse_stat(b"cpu  10 1 5 100 20 2 3 4 7 7\ncpu0 1 1 1 1\n")
    assert times == codec.CpuTimes(busy_ticks=25, total_ticks=145)
    assert codec.parse_stat(b"cpu0 1 2 3 4\n") is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0, 0), (50, 100), 0.5),
        ((0, 0), (0, 100), 0.0),
        ((50, 100), (50, 100), None),  # no tick has passed
        ((60, 100), (50, 200), None),  # ran backwards
        ((50, 200), (60, 100), None),
    ],
)
def test_utilisation_between_two_readings(before, after, expected):
    make = lambda pair: codec.CpuTimes(busy_ticks=pair[0], total_ticks=pair[1])  # noqa: E731
    assert codec.utilisation(make(before), make(after)) == expected
    assert codec.utilisation(None, make(after)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"45000\n", 45.0), (b"-5500\n", -5.5), (b"0\n", 0.0), (b"", None), (b"200000", None), (b"--5", None)],
)
def test_temperatures_are_plausible_or_absent(text, expected):
    assert codec.parse_millidegrees(text) == expected


def test_power_is_energy_over_time_and_survives_the_wrap():
    assert codec.power_w(1_000_000, 3_000_000, None, 2_000_000_000) == pytest.approx(1.0)
    assert codec.power_w(90, 9, 99, 1000) == pytest.approx(19.0)
    assert codec.power_w(90, 9, None, 1000) is None
    assert codec.power_w(1, 2, 99, 0) is None
    assert codec.power_w(None, 2, 99, 1) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"0-3,8\n", (0, 1, 2, 3, 8)), (b"5", (5,)), (b"", ()), (b"3-1", ()), (b"0-99999999", ()), (b"a", ())],
)
def test_cpu_lists(text, expected):
    assert codec.parse_cpu_list(text) == expected


def test_cgroup_limits():
    assert codec.parse_cpu_max(b"150000 100000\n") == 1.5
    assert codec.parse_cpu_max(b"max 100000\n") is None
    assert codec.cpu_quota(b"-1", b"100000") is None
    assert codec.parse_memory_limit(b"max\n") is None
    assert codec.parse_memory_limit(b"9223372036854771712\n") is None
    assert codec.parse_memory_limit(b"1048576\n") == 1048576


def test_cgroup_paths_do_not_lead_out():
    assert codec.parse_cgroup_path(b"0::/a/b\n", "") == "/a/b"
    assert codec.parse_cgroup_path(b"4:memory,cpu:/x\n", "memory") == "/x"
    assert codec.parse_cgroup_path(b"0::/../../etc\n", "") is None


def test_threads_follow_cpus_and_quota():
    assert codec.threads_of((0, 1, 2, 3), None) == 4
    assert codec.threads_of((0, 1, 2, 3), 1.5) == 2
    assert codec.threads_of((), None) == 1


PARSERS = [
    codec.parse_int,
    codec.parse_cpuinfo,
    codec.parse_meminfo,
    codec.parse_stat,
    codec.parse_millidegrees,
    codec.parse_cpu_list,
    codec.parse_allowed_cpus,
    codec.parse_cpu_max,
    codec.parse_memory_limit,
    lambda data: codec.parse_cgroup_path(data, ""),
]
TEXTS = st.one_of(
    st.binary(max_size=200),
    st.text("0123456789 -,:kB\ncpumaxMemTotal/", max_size=200).map(str.encode),
)


@given(data=TEXTS)
def test_no_bytes_make_a_parser_raise_or_lie(data):
    for parse in PARSERS:
        value = parse(data)
        if isinstance(value, float):
            assert math.isfinite(value)
    times = codec.parse_stat(data)
    assert times is None or 0 <= times.busy_ticks <= times.total_ticks


@given(cpus=st.sets(st.integers(0, 500), min_size=1, max_size=50))
def test_cpu_lists_round_trip(cpus):
    text = ",".join(str(cpu) for cpu in sorted(cpus)).encode()
    assert codec.parse_cpu_list(text) == tuple(sorted(cpus))


@given(before=st.integers(0, 10**12), drawn=st.integers(0, 10**9), wrap=st.integers(10**12, 10**13))
def test_power_is_the_same_across_a_wrap(before, drawn, wrap):
    plain = codec.power_w(before, before + drawn, wrap, 10**9)
    wrapped = codec.power_w(wrap - drawn // 2, drawn - drawn // 2 - 1, wrap, 10**9) if drawn >= 2 else None
    assert plain == pytest.approx(drawn / 1e6)
    assert wrapped is None or wrapped == pytest.approx(drawn / 1e6)
