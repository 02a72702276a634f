"""The journal's files, and that one writer alone appends to them."""

import pytest

from ray_snake.errors import CheckpointError, StorageError
from ray_snake.runtime.segments import Segments
from ray_snake.storage import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "run")


def resumed(storage):
    """A writer that has read what is there."""
    segments = Segments(storage)
    list(segments.read())
    return segments


def test_what_was_written_is_read_by_name_from_a_number_on(storage):
    segments = Segments(storage)
    segments.write(0, b"a\nb\n")
    segments.write(1, b"c\n")
    assert list(Segments(storage).read()) == [
        ("000000.jsonl", [b"a", b"b"]),
        ("000001.jsonl", [b"c"]),
    ]
    assert list(Segments(storage).read(1)) == [("000001.jsonl", [b"c"])]


def test_a_writer_goes_on_where_another_one_has_ended(storage):
    Segments(storage).write(0, b"a\n")
    resumed(storage).write(0, b"a\nb\n")
    assert list(Segments(storage).read()) == [("000000.jsonl", [b"a", b"b"])]


@pytest.mark.parametrize("number", [0, 1])
def test_of_two_writers_the_second_one_stops(storage, number):
    Segments(storage).write(0, b"a\n")
    one, other = resumed(storage), resumed(storage)
    one.write(number, b"a\nb\n")
    with pytest.raises(CheckpointError, match=f"another driver.*00000{number}.jsonl"):
        other.write(number, b"a\nc\n")
    # The first one goes on.
    one.write(number, b"a\nb\nd\n")
    assert list(Segments(storage).read())[-1][1] == [b"a", b"b", b"d"]


def test_what_the_storage_took_and_denied_is_the_writers_own(storage, monkeypatch):
    segments = Segments(storage)
    segments.write(0, b"a\n")
    write = Storage.write

    def took_and_denied(self, name, *parts):
        write(self, name, *parts)
        raise StorageError(name, "did not answer", "look at the storage")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", took_and_denied)
        for number, content in ((0, b"a\nb\n"), (1, b"c\n")):
            with pytest.raises(StorageError, match="did not answer"):
                segments.write(number, content)
    segments.write(0, b"a\nb\nd\n")
    segments.write(1, b"c\ne\n")
    assert [lines for _, lines in Segments(storage).read()] == [[b"a", b"b", b"d"], [b"c", b"e"]]
