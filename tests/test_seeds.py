from hypothesis import given
from hypothesis import strategies as st

from ray_snake.seeds import derive_seed

names = st.lists(st.text(max_size=8) | st.integers(), max_size=4).map(tuple)


@given(st.integers(0), names)
def test_a_seed_is_what_numpy_and_torch_take(seed, name):
    assert 0 <= derive_seed(seed, *name) < 2**63


def test_seeds_are_the_same_on_every_machine():
    assert derive_seed(1, "visit", 17, "epoch", 2) == 6864849072240582552
    assert derive_seed(0) == 6711488920161924273


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_another_seed_or_number_gives_another_draw(seed, number, other_seed, other_number):
    same = (seed, number) == (other_seed, other_number)
    assert (
        derive_seed(seed, "visit", number) == derive_seed(other_seed, "visit", other_number)
    ) is same


def test_names_that_read_alike_are_told_apart():
    alike = [("a", "b"), ("ab",), ("a", "b", ""), ("1",), (1,), ("a", 1), ("a", "1"), (12,), (1, 2)]
    alike += [("a/str:b",), ("a\\", "b"), ("a\\/str:b",)]
    assert len({derive_seed(0, *name) for name in alike}) == len(alike)


@given(names, names)
def test_different_names_give_different_seeds(name, other):
    typed = [[(type(part), part) for part in one] for one in (name, other)]
    assert (derive_seed(3, *name) == derive_seed(3, *other)) is (typed[0] == typed[1])
