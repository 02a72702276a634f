import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from ray_snake.errors import CheckpointError
from ray_snake.layers.files import BlockFiles
from ray_snake.layers.tensors import pack, unpack
from ray_snake.storage import Storage

FILE = "blocks/0002/00000005.safetensors"


@pytest.fixture
def files(tmp_path):
    return BlockFiles(Storage(tmp_path))


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator)
    return pack(2, 5, {"weight": weight, "half": weight.bfloat16(), "steps": torch.tensor(9)})


def test_what_was_written_is_read_back(files, state):
    files.write(state)
    back = files.read(2, 5, state.checksum())
    assert (back.block, back.version) == (2, 5)
    assert back.dtypes == state.dtypes
    assert all(torch.equal(tensor, unpack(state)[name]) for name, tensor in unpack(back).items())


def test_a_block_lies_in_one_safetensors_file_per_version(files, state, tmp_path):
    files.write(state)
    assert [str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one.is_file()] == [
        FILE
    ]


def test_a_file_has_the_bytes_that_the_library_writes(files, state, tmp_path):
    files.write(state)
    with safe_open(tmp_path / FILE, framework="pt") as file:
        metadata = file.metadata()
    assert metadata == {"block": "2", "version": "5"}
    content = (tmp_path / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    library = save(unpack(state))
    skipped = int.from_bytes(library[:8], "little")
    header, expected = json.loads(content[8 : 8 + length]), json.loads(library[8 : 8 + skipped])
    del header["__metadata__"]
    assert list(header.items()) == list(expected.items())
    assert content[8 + length :] == library[8 + skipped :]
    assert length % 8 == 0


def test_a_missing_file_is_named(files, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        files.read(2, 5)
    assert FILE in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "restore that file" in str(caught.value)


def test_a_file_cut_short_anywhere_is_found_and_named(files, state, tmp_path):
    files.write(state)
    whole = (tmp_path / FILE).read_bytes()
    for length in range(0, len(whole), 13):
        (tmp_path / FILE).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=FILE):
            files.read(2, 5, state.checksum())


def test_a_flipped_byte_anywhere_is_found_and_named(files, state, tmp_path):
    files.write(state)
    whole = (tmp_path / FILE).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(0, 8), *range(header, len(whole))]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=FILE):
            files.read(2, 5, state.checksum())


def test_no_damage_to_a_header_lets_other_weights_through(files, state, tmp_path):
    files.write(state)
    whole = (tmp_path / FILE).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    found = 0
    for at in range(8, header):
        damaged = bytearray(whole)
        damaged[at] ^= 0x01
        (tmp_path / FILE).write_bytes(damaged)
        try:
            back = files.read(2, 5, state.checksum())
        except CheckpointError:
            found += 1
        else:
            # The damage was in the metadata or the padding, which no weight depends on.
            assert back.checksum() == state.checksum()
    assert found > (header - 8) / 2


def test_another_blocks_file_in_its_place_is_found(files, state, tmp_path):
    files.write(state)
    other = pack(2, 6, {"weight": torch.zeros(4, 3)})
    files.write(other)
    (tmp_path / FILE).write_bytes((tmp_path / "blocks/0002/00000006.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="checksum"):
        files.read(2, 5, state.checksum())


def test_keep_only_deletes_the_other_versions_of_that_block(files, tmp_path):
    for block, version in [(2, 4), (2, 5), (2, 6), (3, 4)]:
        files.write(pack(block, version, {"a": torch.ones(1)}))
    files.keep_only(2, {5})
    left = sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*.safetensors"))
    assert left == [FILE, "blocks/0003/00000004.safetensors"]


WRITES_FOR_EVER = """
import sys
from ray_snake.storage import Storage

storage = Storage(sys.argv[1])
while True:
    storage.write("blocks/0002/00000001.safetensors", bytes(2**24))
    print("written", flush=True)
"""


def test_keep_only_clears_away_what_killed_writes_left(files, tmp_path):
    folder = tmp_path / "blocks" / "0002"

    def unfinished():
        return list(folder.glob(".*.tmp"))

    def stopped_at_work():
        writer.send_signal(signal.SIGSTOP)
        os.waitpid(writer.pid, os.WUNTRACED)
        return unfinished()

    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        writer.stdout.readline()
        while not stopped_at_work():
            writer.send_signal(signal.SIGCONT)
            while not unfinished():
                assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert unfinished()
    files.keep_only(2, {1})
    assert [one.name for one in folder.iterdir()] == ["00000001.safetensors"]


def test_deleting_a_version_leaves_the_others(files):
    for version in (4, 5):
        files.write(pack(2, version, {"a": torch.ones(1)}))
    files.delete(2, 4)
    with pytest.raises(CheckpointError, match=r"00000004\.safetensors"):
        files.read(2, 4)
    assert files.read(2, 5).version == 5


def test_deleting_what_is_not_there_does_nothing(files):
    files.delete(2, 4)


def test_writing_a_version_again_replaces_it(files, state):
    files.write(pack(2, 5, {"a": torch.ones(1)}))
    files.write(state)
    assert files.read(2, 5).checksum() == state.checksum()
