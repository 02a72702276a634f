from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_snake.layers.ledger import Ledger, Release

BLOCKS = 4
NODES = 3
some_blocks = st.sets(st.integers(0, BLOCKS - 1))
a_node = st.integers(0, NODES - 1)


class LedgerAgainstModel(RuleBasedStateMachine):
    """The ledger beside a set of all (node, block, version) that are held."""

    def __init__(self):
        super().__init__()
        self.visit = 0
        self.versions = [0] * BLOCKS
        self.refs = [f"0/{block}" for block in range(BLOCKS)]
        self.held = set()
        self.ledger = Ledger(self.versions, self.refs)

    def holders(self, node, block):
        return {one for one in self.held if one[:2] == (node, block)}

    @rule(node=a_node, blocks=some_blocks)
    def holds(self, node, blocks):
        self.ledger.holds(node, blocks)
        for block in blocks:
            self.held -= self.holders(node, block)
            self.held.add((node, block, self.versions[block]))

    @rule(node=a_node, blocks=some_blocks)
    def let_go(self, node, blocks):
        self.ledger.let_go(node, blocks)
        for block in blocks:
            self.held -= self.holders(node, block)

    @rule(node=a_node)
    def forget(self, node):
        self.ledger.forget(node)
        self.held = {one for one in self.held if one[0] != node}

    @precondition(lambda self: self.visit < 30)
    @rule(blocks=some_blocks)
    def commit(self, blocks):
        self.visit += 1
        refs = {block: f"{self.visit}/{block}" for block in blocks}
        releases = self.ledger.commit(self.visit, refs)
        superseded = {one for one in self.held if one[1] in blocks}
        assert sorted((one.node, one.block, one.version) for one in releases) == sorted(superseded)
        self.held -= superseded
        for block in blocks:
            self.versions[block] = self.visit
            self.refs[block] = refs[block]

    @invariant()
    def versions_and_refs_are_those_of_the_last_commits(self):
        assert self.ledger.versions == tuple(self.versions)
        assert self.ledger.refs == tuple(self.refs)

    @invariant()
    def stale_is_what_a_node_does_not_hold_in_its_current_version(self):
        for node in range(NODES):
            current = [(node, block, self.versions[block]) in self.held for block in range(BLOCKS)]
            assert self.ledger.stale(node) == [
                block for block in range(BLOCKS) if not current[block]
            ]


LedgerAgainstModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None
)
TestLedgerAgainstModel = LedgerAgainstModel.TestCase


def test_a_node_that_never_held_anything_lacks_everything():
    assert Ledger([0, 0, 0], "abc").stale(5) == [0, 1, 2]


def test_a_commit_releases_the_holders_of_what_it_supersedes_and_of_nothing_else():
    ledger = Ledger([0, 0], "ab")
    ledger.holds(1, [0, 1])
    ledger.holds(2, [1])
    assert ledger.commit(7, {1: "c"}) == [
        Release(node=1, block=1, version=0),
        Release(node=2, block=1, version=0),
    ]
    assert ledger.commit(8, {1: "d"}) == []
    assert ledger.versions == (0, 8)
    assert ledger.refs == ("a", "d")
    assert ledger.stale(1) == [1]
