"""Transfers in chunks: no finished chunk is asked for again, bad sources go last, and it always ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.machine.transfer import (
    REST_MAX_S,
    SPAN_CHUNKS_MAX,
    STRIKES_MAX,
    Ask,
    Began,
    Blamed,
    ChunkStored,
    ChunkWrong,
    Finished,
    GaveUp,
    SourceBroke,
    SourceEnded,
    Ticked,
    Transfer,
)

S = 1_000_000_000


def begin(chunks=10, finished=(), sources=2, **options):
    machine = Transfer(chunks, finished, sources, **options)
    return machine, list(machine.step(Began(), 0))


def store(machine, source, chunks, now_ns=0):
    return [effect for chunk in chunks for effect in machine.step(ChunkStored(source, chunk), now_ns)]


def test_the_preferred_source_is_asked_for_the_lowest_missing_run():
    _, effects = begin(10, finished={0, 1, 5})
    assert effects == [Ask(0, 2, 3)]


def test_a_span_has_a_bound():
    _, effects = begin(1000, sources=1)
    assert effects == [Ask(0, 0, SPAN_CHUNKS_MAX)]


def test_sources_at_once_share_what_is_left():
    _, effects = begin(10, sources=2, at_once=2)
    assert effects == [Ask(0, 0, 5), Ask(1, 5, 5)]


def test_a_file_that_is_whole_already_finishes_at_once():
    machine, effects = begin(3, finished={0, 1, 2})
    assert effects == [Finished()]
    assert machine.step(Ticked(), S) == ()
    assert machine.wake_ns() is None


def test_a_broken_source_rests_while_the_next_goes_on_after_what_came():
    machine, _ = begin(10)
    store(machine, 0, [0, 1])
    # Chunk 2 came whole and is still being judged.
    assert machine.step(SourceBroke(0, 3, "cut"), 0) == [Ask(1, 3, 7)]
    assert store(machine, 0, [2]) == []
    assert store(machine, 1, range(3, 10)) == [Finished()]


def test_a_lone_source_is_asked_again_after_its_rest():
    machine, _ = begin(4, sources=1)
    store(machine, 0, [0])
    assert machine.step(SourceBroke(0, 1, "cut"), 0) == []
    assert 0 < machine.wake_ns() <= REST_MAX_S * S
    assert machine.step(Ticked(), machine.wake_ns()) == [Ask(0, 1, 3)]


def test_a_source_that_wishes_a_rest_gets_it():
    machine, _ = begin(4, sources=1)
    machine.step(SourceBroke(0, 0, "fetching it myself", retry_after_s=3.0), 0)
    assert machine.wake_ns() == 3 * S


def test_a_wrong_chunk_is_told_once_and_fetched_from_another_source():
    machine, _ = begin(4)
    assert machine.step(ChunkWrong(0, 1), 0) == [Blamed(0, 1)]
    store(machine, 0, [0])
    assert machine.step(SourceEnded(0, 2), 0) == [Ask(1, 1, 3)]
    assert store(machine, 1, [1, 2, 3]) == [Finished()]


def test_a_source_that_lies_is_asked_again_only_while_no_other_one_answers():
    machine, _ = begin(4)
    machine.step(ChunkWrong(0, 0), 0)
    assert machine.step(SourceEnded(0, 1), 0) == [Ask(1, 0, 4)]
    now_ns = 0
    for _ in range(2):
        assert machine.step(SourceBroke(1, 0, "away"), now_ns) == []
        now_ns = machine.wake_ns()
        assert machine.step(Ticked(), now_ns) == [Ask(1, 0, 4)]
    assert machine.step(SourceBroke(1, 0, "away"), now_ns) == [Ask(0, 0, 4)]
    assert store(machine, 0, range(4), now_ns) == [Finished()]


def test_a_source_that_lies_three_times_is_out():
    machine, effects = begin(4, sources=1)
    for chunk in range(STRIKES_MAX):
        assert effects[-1] == Ask(0, 0, 4)
        told = machine.step(ChunkWrong(0, 0), 0)
        assert told == ([Blamed(0, 0)] if chunk == 0 else [])
        effects = machine.step(SourceEnded(0, 1), 0)
    assert effects == [GaveUp(("chunk 0 has another hash than the manifest says",))]


def test_it_gives_up_when_every_source_is_out_or_patience_ends():
    machine, _ = begin(4, sources=2, patience_s=10)
    machine.step(SourceBroke(0, 0, "404", is_final=True), 0)
    effects = machine.step(SourceBroke(1, 0, "cut"), 0)
    while not machine.is_over:
        effects = machine.step(Ticked(), machine.wake_ns())
        if effects and isinstance(effects[-1], Ask):
            effects = machine.step(SourceBroke(1, 0, "cut"), machine._moved_ns + 10 * S)
    assert effects == [GaveUp(("404", "cut"))]


def test_no_source_at_all_is_given_up_at_once():
    _, effects = begin(4, sources=0)
    assert effects == [GaveUp(())]


class World:
    """Sources that answer, break and lie as drawn; checks the invariants at every effect."""

    def __init__(self, draw, chunks, finished, sources, at_once):
        self.draw = draw
        self.now_ns = 0
        self.finished = set(finished)
        self.asked = {}
        self.judging = []
        self.blamed = set()
        self.ends = []
        self.machine = Transfer(chunks, finished, sources, at_once=at_once, patience_s=30)
        self.perform(self.machine.step(Began(), 0))

    def perform(self, effects):
        for effect in effects:
            assert not self.ends
            match effect:
                case Ask(source, first, count):
                    span = set(range(first, first + count))
                    assert source not in self.asked
                    assert not span & self.finished
                    assert not span & {chunk for one in self.asked.values() for chunk in one}
                    assert not span & {chunk for _, chunk in self.judging}
                    self.asked[source] = list(range(first, first + count))
                case Blamed(source, _):
                    assert source not in self.blamed
                    self.blamed.add(source)
                case Finished() | GaveUp():
                    self.ends.append(effect)

    def feed(self, event):
        self.perform(self.machine.step(event, self.now_ns, self.draw(st.integers(0, 2**64 - 1))))

    def step(self):
        what = self.draw(st.sampled_from(["come", "judge", "break", "end", "tick", "final"]))
        if what == "judge" and self.judging:
            source, chunk = self.judging.pop(self.draw(st.integers(0, len(self.judging) - 1)))
            if self.draw(st.integers(0, 9)) == 0:
                self.feed(ChunkWrong(source, chunk))
            else:
                self.finished.add(chunk)
                self.feed(ChunkStored(source, chunk))
        elif what == "tick" and (wake := self.machine.wake_ns()) is not None:
            self.now_ns = max(self.now_ns, min(wake, self.now_ns + 2 * S))
            self.feed(Ticked())
        elif self.asked and what in ("come", "break", "end", "final"):
            source = self.draw(st.sampled_from(sorted(self.asked)))
            span = self.asked.pop(source)
            came = self.draw(st.integers(1, len(span))) if what in ("come", "end") else 0
            self.judging += [(source, chunk) for chunk in span[:came]]
            if what in ("come", "end"):
                self.feed(SourceEnded(source, came))
            else:
                self.feed(SourceBroke(source, 0, "x", is_final=what == "final"))


@given(st.data())
def test_whatever_sources_do_the_invariants_hold_and_it_ends(data):
    chunks = data.draw(st.integers(1, 60))
    finished = data.draw(st.sets(st.integers(0, chunks - 1)))
    world = World(data.draw, chunks, finished, data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3)))
    for _ in range(60):
        if world.ends:
            break
        world.step()
    settle(world)
    assert len(world.ends) == 1
    assert (world.ends == [Finished()]) == (world.finished == set(range(chunks)))


def settle(world):
    """Let every source that is still asked answer rightly, and time pass."""
    for _ in range(10_000):
        if world.ends:
            return
        if world.judging:
            source, chunk = world.judging.pop()
            world.finished.add(chunk)
            world.perform(world.machine.step(ChunkStored(source, chunk), world.now_ns))
        elif world.asked:
            source, span = world.asked.popitem()
            world.judging += [(source, chunk) for chunk in span]
            world.perform(world.machine.step(SourceEnded(source, len(span)), world.now_ns))
        else:
            world.now_ns = max(world.now_ns, world.machine.wake_ns())
            world.perform(world.machine.step(Ticked(), world.now_ns))
    pytest.fail("it does not end")
