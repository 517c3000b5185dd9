from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.service import AdmissionSpec
from serve.engine.service.admission import Admission, Observation, admit, turned_away
from serve.engine.speed import Unbegun

SPEC = AdmissionSpec()
POLL_S = SPEC.poll_s


def seen(at_s: float = 0.0, **fields) -> Observation:
    calm = {"replicas": 1, "running": 0, "waiting": 0, "kv_fraction": 0.0, "interactive": 0, "own": 0}
    return Observation(**{"at_s": at_s, **calm, **fields})


@dataclass
class Server:
    """A service that computes `seats` requests at once, takes `joins` of them up between two looks."""

    seats: int
    spec: AdmissionSpec = field(default_factory=AdmissionSpec)
    joins: int = 1 << 30
    admission: Admission = field(default_factory=Admission)
    at_s: float = 0.0
    own: int = 0
    running: int = 0
    peak: int = 0

    def look(self, interactive: int = 0, **more) -> int:
        """One poll: all that was allowed is sent, and stays."""
        self.at_s += self.spec.poll_s
        held = self.own + interactive
        self.running = min(self.seats, held, self.running + self.joins)
        observation = seen(
            self.at_s,
            running=self.running,
            waiting=held - self.running,
            interactive=interactive,
            own=self.own,
            **more,
        )
        _, self.admission = admit(self.admission, observation, self.spec, self.at_s)
        self.own = self.admission.size
        self.peak = max(self.peak, self.own)
        return self.own


def observations() -> st.SearchStrategy[Observation]:
    counts = st.integers(0, 1000)
    return st.builds(
        seen,
        running=counts,
        waiting=counts,
        interactive=counts,
        own=counts,
        deferrable=counts,
        replicas=st.integers(1, 50),
        kv_fraction=st.floats(0, 1),
        unbegun=st.none() | st.builds(Unbegun, counts, counts),
        first_wait_s=st.floats(0, 1e4),
        step_s=st.none() | st.floats(0, 100),
    )


@settings(deadline=None)
@given(st.lists(st.tuples(observations(), st.floats(0.01, 5)), max_size=40))
def test_never_more_than_the_window_and_never_while_an_interactive_request_waits(looks):
    admission, at_s = Admission(), 0.0
    for look, gap_s in looks:
        at_s += gap_s
        look = replace(look, at_s=at_s)
        more, admission = admit(admission, look, SPEC, at_s)
        assert 0 <= more <= max(0, admission.size - look.own)
        assert 0 <= admission.window < math.inf
        waits = look.others_waiting or look.ttft_s * 1000 > (SPEC.max_ttft_ms or math.inf)
        if look.interactive and waits:
            assert (more, admission.size, admission.is_urgent) == (0, 0, True)
        if admission.is_urgent:
            assert admission.size == 0


@settings(deadline=None)
@given(st.lists(observations(), max_size=20))
def test_a_look_that_was_judged_already_changes_nothing(looks):
    admission = Admission()
    for number, look in enumerate(looks):
        look = replace(look, at_s=float(number))
        _, admission = admit(admission, look, SPEC, number)
        assert admit(admission, look, SPEC, number + POLL_S)[1] == admission


@settings(deadline=None)
@given(observations(), st.floats(0, 1000))
def test_nothing_goes_where_nothing_is_known(look, window):
    old = Admission(window=window)
    assert admit(old, None, SPEC, 0.0)[0] == 0
    more, held = admit(old, look, SPEC, look.at_s + SPEC.stale_s + 0.1)
    assert (more, held.size, held.window) == (0, 0, window)


def test_a_service_with_room_is_full_within_seconds():
    server = Server(seats=512)
    for _ in range(12):
        server.look()
    assert server.own >= 400


def test_a_full_service_is_found_once_and_then_kept_from_its_edge():
    server = Server(seats=64)
    sizes = [server.look() for _ in range(60)]  # 15 s
    assert all(38 <= size <= 64 for size in sizes[-40:]), sizes
    assert server.peak <= 130


def test_prompts_that_are_read_one_after_another_do_not_look_like_a_full_service():
    server = Server(seats=256, joins=8)
    for _ in range(200):
        server.look()
    assert server.own >= 200


def test_rows_stop_within_one_look_and_are_called_back():
    server = Server(seats=64)
    for _ in range(30):
        server.look()
    assert server.look(interactive=2, first_wait_s=1.5) == 0
    assert server.admission.is_urgent
    looks = 0
    while server.look(interactive=2) == 0:
        looks += 1
    assert looks * POLL_S >= SPEC.cooldown_s - POLL_S
    for _ in range(40):
        server.look(interactive=2)
    assert server.own > 16


def test_each_interactive_request_takes_a_rows_place_at_once():
    server = Server(seats=64)
    for _ in range(40):
        server.look()
    before = server.own
    after = server.look(interactive=10)
    assert after <= before - 10


def test_rows_of_other_jobs_that_wait_are_nobody_s_wait():
    look = seen(1.0, running=8, waiting=20, interactive=1, own=4, deferrable=24)
    assert not admit(Admission(window=4), look, SPEC, 1.0)[1].is_urgent
    assert admit(Admission(window=4), replace(look, deferrable=4), SPEC, 1.0)[1].is_urgent


@pytest.mark.parametrize(
    "unbegun, others",
    [
        (None, 0),  # eight rows could be those that wait
        (Unbegun(interactive=3, batch=0), 3),
        (Unbegun(interactive=1, batch=2), 1),
        (Unbegun(interactive=0, batch=3), 0),
        (Unbegun(interactive=2, batch=3), 0),  # being read, while rows wait
        (Unbegun(interactive=1, batch=0), 1),  # two rows were preempted
    ],
)
def test_an_interactive_request_that_waits_is_seen_behind_rows_where_it_is_told_apart(
    unbegun: Unbegun | None, others: int
):
    look = seen(1.0, running=8, waiting=3, interactive=3, own=8, deferrable=8, unbegun=unbegun)
    assert look.others_waiting == others
    assert admit(Admission(window=8), look, SPEC, 1.0)[1].is_urgent == (others > 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["waits", "is read", "runs"])), max_size=30))
def test_of_those_who_wait_as_many_are_missed_as_rows_are_read_and_none_is_made_up(requests: list[tuple[bool, str]]):
    def count(is_interactive: bool, *states: str) -> int:
        return sum(each == is_interactive and state in states for each, state in requests)

    unbegun = Unbegun(count(True, "waits", "is read"), count(False, "waits", "is read"))
    waiting = count(True, "waits") + count(False, "waits")
    others = seen(waiting=waiting, unbegun=unbegun).others_waiting
    assert count(True, "waits") - count(False, "is read") <= others <= count(True, "waits")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kv_fraction": 0.9}, [50, 25, 12]),
        ({"interactive": 1, "step_s": 0.2}, [50, 25, 12]),
        ({"interactive": 1, "step_s": 0.05}, [80, 64, 51]),
        ({"interactive": 1, "step_s": 0.05, "kv_fraction": 0.9}, [50, 25, 12]),
    ],
    ids=["cache", "far too slow", "slow", "both"],
)
def test_what_is_beyond_a_limit_takes_rows_away(fields, expected):
    spec = AdmissionSpec(max_tpot_ms=40)
    admission = Admission(window=100, interactive=1)
    sizes = []
    for number in range(1, 4):
        own = admission.size
        _, admission = admit(admission, seen(float(number), own=own, running=own, **fields), spec, number)
        sizes.append(admission.size)
    assert sizes == expected


@pytest.mark.parametrize(("fixed_ms", "row_ms"), [(6, 0.01), (2, 0.05), (9.5, 0.001), (1, 1)])
def test_rows_come_near_to_what_slow_tokens_allow_and_stay_there(fixed_ms, row_ms):
    """A step takes a fixed time and one for each row of the look before."""
    spec, limit_ms = AdmissionSpec(max_tpot_ms=10, max_ttft_ms=None), 10
    best = (limit_ms - fixed_ms) / row_ms
    admission, own, sizes, times_ms = Admission(), 0, [], []
    for number in range(300):
        step_ms = fixed_ms + row_ms * own
        look = seen(number * POLL_S, interactive=1, own=own, running=own + 1, step_s=step_ms / 1000)
        _, admission = admit(admission, look, spec, number * POLL_S)
        own = admission.size
        sizes.append(own)
        times_ms.append(step_ms)
    assert all(0.85 * best - 1 <= size <= best for size in sizes[200:]), (best, sizes[200:])
    assert all(time <= limit_ms for time in times_ms)


def test_rows_that_were_taken_away_and_go_on_are_not_taken_away_again():
    spec, admission = AdmissionSpec(max_tpot_ms=40, max_ttft_ms=None), Admission(window=100, interactive=1)
    for number in range(10):  # all of them are still there, and a token takes as long as before
        look = seen(number, own=100, running=101, interactive=1, step_s=0.05)
        _, admission = admit(admission, look, spec, number)
    assert admission.size == 80


def test_slow_tokens_that_nobody_waits_for_do_not_matter():
    spec = AdmissionSpec(max_tpot_ms=40)
    _, admission = admit(Admission(window=10), seen(1.0, own=10, running=10, step_s=0.5), spec, 1.0)
    assert admission.size > 10


def test_a_service_that_turns_rows_away_has_fewer_of_them_for_a_while():
    server = Server(seats=512)
    while server.look() < 64:
        pass
    held = server.own
    server.admission = turned_away(server.admission, held, server.at_s)
    sizes = [server.look() for _ in range(100)]
    assert sizes[0] <= held / 2 + 1
    assert max(sizes) <= held * (1 - SPEC.headroom_fraction)
    for _ in range(int(SPEC.probe_s / POLL_S)):
        server.look()
    assert server.own > held
