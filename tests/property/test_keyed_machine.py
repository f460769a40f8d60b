"""A registry of values by key against a list in the order of use."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shared.infrastructure.resilience import Keyed
from tests.property.machine import thorough

KEYS = st.integers(0, 19)
LIMIT, LOOKS = 12, 8


class Value:
    """What is kept, and whether it is better kept."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.in_use = False


class KeyedMachine(RuleBasedStateMachine):
    """The model is a list of values, the one least recently asked for first."""

    def __init__(self) -> None:
        super().__init__()
        self.built = 0
        self.keyed = Keyed[Value](self.build, max_keys=LIMIT, keep=lambda value: value.in_use)
        self.values: list[Value] = []

    def build(self, key: int) -> Value:
        self.built += 1
        return Value(key)

    def find(self, key: int) -> Value | None:
        return next((value for value in self.values if value.key == key), None)

    @rule(key=KEYS, in_use=st.booleans())
    def get(self, key: int, in_use: bool) -> None:
        known, built = self.find(key), self.built
        value = self.keyed.get(key)
        value.in_use = in_use
        if known is None:
            assert self.built == built + 1
            if len(self.values) == LIMIT:
                self.make_room()
        else:
            assert value is known
            self.values.remove(known)
        self.values.append(value)

    def make_room(self) -> None:
        oldest = self.values[:LOOKS]
        asked = 0
        while asked < LOOKS and oldest[asked].in_use:
            asked += 1
        gone = oldest[asked] if asked < LOOKS else oldest[0]
        # Those that were asked and kept are not asked again soon.
        kept = [value for value in oldest[:asked] if value is not gone]
        rest = [value for value in self.values if value is not gone and value not in kept]
        self.values = [*rest, *kept]

    @rule(key=KEYS)
    def discard(self, key: int) -> None:
        self.keyed.discard(key)
        self.values = [value for value in self.values if value.key != key]

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert len(self.keyed) == len(self.values) <= LIMIT
        for key in range(20):
            assert (key in self.keyed) == (self.find(key) is not None)


TestKeyedMachine = KeyedMachine.TestCase
TestKeyedMachine.settings = thorough(examples=80, steps=60)
