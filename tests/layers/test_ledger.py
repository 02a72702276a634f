"""Who holds which version, and what a node should pull."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_snake.layers.ledger import Ledger, Parcel, Release

BLOCKS = 4
NODES = 3
WHOLE = 8
DELTA = 2
some_blocks = st.sets(st.integers(0, BLOCKS - 1))
a_node = st.integers(0, NODES - 1)


def parcel(block, version, base=None, *, machine="a", **fields):
    return Parcel(
        block=block,
        version=version,
        ref=f"{block}/{version}/{base}",
        bytes=WHOLE if base is None else DELTA,
        base=base,
        origin=machine,
        machines={machine},
        **fields,
    )


def make(blocks=BLOCKS, anchors=None):
    return Ledger([0] * blocks, [parcel(block, 0) for block in range(blocks)], anchors)


class WholeBlocks(RuleBasedStateMachine):
    """A ledger without differences beside a set of all (node, block, version) that are held."""

    def __init__(self):
        super().__init__()
        self.visit = 0
        self.versions = [0] * BLOCKS
        self.held = set()
        self.ledger = make()

    @rule(node=a_node, blocks=some_blocks)
    def holds(self, node, blocks):
        current = [(block, self.versions[block]) for block in blocks]
        assert self.ledger.holds(node, current) == []
        self.held |= {(node, *one) for one in current}

    @rule(node=a_node, blocks=some_blocks)
    def let_go(self, node, blocks):
        current = [(block, self.versions[block]) for block in blocks]
        self.ledger.let_go(node, current)
        self.held -= {(node, *one) for one in current}

    @rule(node=a_node)
    def forget(self, node):
        self.ledger.forget(node)
        self.held = {one for one in self.held if one[0] != node}

    @precondition(lambda self: self.visit < 30)
    @rule(blocks=some_blocks)
    def commit(self, blocks):
        self.visit += 1
        made = {block: parcel(block, self.visit) for block in blocks}
        releases = self.ledger.commit(self.visit, made)
        superseded = {one for one in self.held if one[1] in blocks}
        assert sorted((one.node, one.block, one.version) for one in releases) == sorted(superseded)
        self.held -= superseded
        for block in blocks:
            self.versions[block] = self.visit

    @invariant()
    def a_visit_needs_the_current_versions(self):
        assert self.ledger.versions == tuple(self.versions)
        assert self.ledger.needs({0, 1}) == list(enumerate(self.versions))
        assert self.ledger.differences({0, 1}) == []

    @invariant()
    def a_node_lacks_what_it_does_not_hold(self):
        for node in range(NODES):
            needed = self.ledger.needs(())
            lacking = [one for one in needed if (node, *one) not in self.held]
            assert self.ledger.lacks(node, needed) == lacking

    @invariant()
    def there_is_one_way_to_get_a_version(self):
        for block, version in enumerate(self.versions):
            assert self.ledger.source(0, "b", block, version).version == version


WholeBlocks.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestWholeBlocks = WholeBlocks.TestCase


def trained_once(base=0):
    """Block 0 was trained once, from an anchor that node 1 holds."""
    ledger = make(blocks=2, anchors=[0, 0])
    ledger.holds(1, [(0, 0), (1, 0)])
    ledger.commit(1, {0: parcel(0, 1, base, machine="m0", nodes={0})})
    return ledger


def test_a_visit_needs_the_anchors_of_what_it_trains():
    ledger = trained_once()
    assert ledger.needs({0}) == [(0, 0), (1, 0)]
    assert ledger.needs({1}) == [(0, 1), (1, 0)]
    assert ledger.needs({0}, anchors=[1, 0]) == [(0, 1), (1, 0)]
    assert [one.ref for one in ledger.differences({0, 1})] == ["0/1/0"]


def test_an_anchor_outlives_its_block():
    ledger = trained_once()
    assert ledger.lacks(1, [(0, 0)]) == []
    assert ledger.source(2, "m2", 0, 0).ref == "0/0/None"
    assert ledger.used({0, 1}) == [(0, 1)]


def test_a_difference_is_for_those_who_hold_its_base():
    ledger = trained_once()
    assert ledger.source(1, "m1", 0, 1).ref == "0/1/0"
    assert ledger.source(2, "m2", 0, 1) is None
    ledger.add(parcel(0, 1, machine="driver"))
    assert ledger.source(2, "m2", 0, 1).ref == "0/1/None"
    assert ledger.source(1, "m1", 0, 1).ref == "0/1/0"


def test_what_the_machine_has_whole_comes_first():
    ledger = trained_once()
    ledger.add(parcel(0, 1, machine="m1"))
    assert ledger.source(1, "m1", 0, 1).bytes == WHOLE
    assert ledger.source(1, "elsewhere", 0, 1).bytes == DELTA


def test_a_private_parcel_is_for_its_own_machine():
    ledger = trained_once()
    ledger.add(parcel(0, 1, machine="m1", private=True))
    assert ledger.source(2, "m2", 0, 1) is None
    assert ledger.source(2, "m1", 0, 1).private


def test_bytes_are_counted_for_a_node_alone_and_between_machines():
    ledger = trained_once()
    difference = ledger.source(1, "m1", 0, 1)
    assert ledger.deliver(1, "m1", difference) == (DELTA, DELTA)
    # Now the machine has it, and the node has had it.
    assert ledger.deliver(1, "m1", difference) == (0, 0)
    ledger.add(parcel(0, 1, machine="m1"))
    # A neighbour takes what was decoded there: for a node alone it would be a difference.
    ledger.holds(2, [(0, 0)])
    assert ledger.deliver(2, "m1", ledger.source(2, "m1", 0, 1)) == (DELTA, 0)
    # Who made it has it.
    assert ledger.deliver(0, "m0", difference) == (0, 0)


def test_who_lost_its_process_pulls_again():
    ledger = trained_once()
    difference = ledger.source(1, "m1", 0, 1)
    ledger.deliver(1, "m1", difference)
    ledger.forget(1)
    assert ledger.lacks(1, [(1, 0)]) == [(1, 0)]
    assert ledger.deliver(1, "m1", difference)[0] == DELTA


def test_a_former_anchor_is_released_once_a_node_holds_the_next():
    ledger = trained_once()
    ledger.anchor([1, 0])
    assert ledger.lacks(1, [(0, 0)]) == []
    assert ledger.holds(1, [(0, 1)]) == [Release(node=1, block=0, version=0)]
    assert ledger.lacks(1, [(0, 0)]) == [(0, 0)]
    # Its own parcels are gone, those of the new one are not.
    assert ledger.source(1, "m1", 0, 0) is None
    ledger.holds(2, [(0, 0)])
    assert ledger.source(2, "m2", 0, 1) is not None


def test_what_is_neither_current_nor_an_anchor_is_not_kept():
    ledger = trained_once()
    ledger.holds(1, [(0, 1)])
    assert ledger.commit(2, {0: parcel(0, 2, 0)}) == [Release(node=1, block=0, version=1)]
    ledger.add(parcel(0, 1, machine="driver"))
    assert ledger.source(1, "driver", 0, 1) is None


def test_a_node_that_never_held_anything_lacks_everything():
    assert make(blocks=3).lacks(5, [(0, 0), (2, 0)]) == [(0, 0), (2, 0)]
