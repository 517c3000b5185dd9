from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve.router.blocks import block_keys
from serve.router.index import PrefixIndex

PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
"""Of few tokens, so that prefixes are shared often; a block is one token."""


class IndexMachine(RuleBasedStateMachine):
    """The index beside the plainest form of what it stands for: per replica a list of prefixes, the oldest first."""

    @initialize(max_blocks=st.integers(0, 60))
    def start(self, max_blocks: int):
        self.max_blocks = max_blocks
        self.index = PrefixIndex(max_blocks)
        self.plain: dict[int, list[tuple[int, ...]]] = {}
        self.capacity: dict[int, int] = {}

    def trim(self, slot: int):
        room = min(self.capacity[slot], self.max_blocks // len(self.plain))
        del self.plain[slot][: max(0, len(self.plain[slot]) - room)]

    @rule(slot=st.integers(0, 70), capacity=st.integers(0, 30))
    def place(self, slot: int, capacity: int):
        if slot not in self.plain:
            self.index.place(slot, capacity)
            self.plain[slot], self.capacity[slot] = [], capacity
            for other in self.plain:
                self.trim(other)

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def drop(self, data: st.DataObject):
        slot = data.draw(st.sampled_from(sorted(self.plain)))
        self.index.drop(slot)
        del self.plain[slot], self.capacity[slot]
        assert slot not in self.index.match(block_keys([0, 0], 1), -1)[0]

    @precondition(lambda self: self.plain)
    @rule(data=st.data(), prompt=PROMPTS)
    def hold(self, data: st.DataObject, prompt: list[int]):
        slot = data.draw(st.sampled_from(sorted(self.plain)))
        self.index.hold(slot, list(block_keys(prompt, 1)))
        used = [tuple(prompt[:end]) for end in range(len(prompt), 0, -1)]
        self.plain[slot] = [prefix for prefix in self.plain[slot] if prefix not in used] + used
        self.trim(slot)

    @precondition(lambda self: self.plain)
    @rule(data=st.data(), blocks=st.integers(0, 40))
    def fill(self, data: st.DataObject, blocks: int):
        slot = data.draw(st.sampled_from(sorted(self.plain)))
        self.index.fill(slot, blocks)
        self.plain[slot] += [()] * blocks
        self.trim(slot)

    @precondition(lambda self: self.plain)
    @rule(prompt=PROMPTS, among=st.integers(0, 1 << 71))
    def match(self, prompt: list[int], among: int):
        found, walked = self.index.match(block_keys(prompt, 1), among)
        for slot, held in self.plain.items():
            depths = [end for end in range(1, len(prompt) + 1) if tuple(prompt[:end]) in held]
            assert depths == list(range(1, len(depths) + 1))  # who holds a block holds all before it
            assert found.get(slot, 0) == (len(depths) if among >> slot & 1 else 0)
        assert walked == list(block_keys(prompt, 1))[: len(walked)]

    @invariant()
    def memory_is_bounded(self):
        assert self.index.num_blocks == sum(map(len, self.plain.values())) <= self.max_blocks


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(PROMPTS, max_size=20), st.integers(1, 8))
def test_what_is_forgotten_leaves_nothing_behind(prompts: list[list[int]], capacity: int):
    index = PrefixIndex(1000)
    index.place(0, capacity)
    index.place(1, capacity)
    for number, prompt in enumerate(prompts):
        index.hold(number % 2, list(block_keys(prompt, 1)))
    index.drop(0)
    index.drop(1)
    assert index.num_blocks == 0
    assert not index._holders
