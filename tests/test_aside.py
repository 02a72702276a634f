"""What is written aside takes the place of its target whole, or leaves it as it was."""

import pytest

from ray_snake.aside import written_aside


def write_folder(path):
    path.mkdir()
    (path / "inner").write_text("new")


def write_file(path):
    path.write_text("new")


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_it_takes_the_name_at_the_end_and_leaves_nothing_beside(tmp_path, write):
    target = tmp_path / "target"
    (target.mkdir if write is write_folder else target.touch)()
    with written_aside(target) as unfinished:
        write(unfinished)
        before = sorted(tmp_path.iterdir())
    assert before == sorted([target, unfinished])
    assert [*tmp_path.iterdir()] == [target]
    assert (target / "inner" if target.is_dir() else target).read_text() == "new"


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_breaks_off_leaves_the_target_as_it_was(tmp_path, write):
    target = tmp_path / "target"
    target.write_text("old")

    def break_off():
        with written_aside(target) as unfinished:
            write(unfinished)
            raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        break_off()
    assert [*tmp_path.iterdir()] == [target]
    assert target.read_text() == "old"
