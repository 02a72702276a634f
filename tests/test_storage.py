import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from ray_snake.config import SnakeConfig
from ray_snake.data import NodeDataset, ShardSource, make_table, write_shard
from ray_snake.errors import DataError, SnakeError, StorageError
from ray_snake.layers.files import BlockFiles
from ray_snake.runtime.run_folder import RunFolder, choose_run
from ray_snake.storage import Storage, open_file, split_uri

BUCKET = "snake-bucket"


@pytest.fixture(scope="module")
def s3_server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3_client(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture(params=["local", "file", "s3"])
def storage(request, tmp_path):
    """The same behaviour is asked of every kind of location."""
    if request.param == "local":
        return Storage(str(tmp_path / "runs"))
    if request.param == "file":
        return Storage((tmp_path / "runs with space").as_uri())
    request.getfixturevalue("s3_client")
    endpoint = quote(request.getfixturevalue("s3_server"), safe="")
    return Storage(f"s3://{BUCKET}/runs?scheme=http&endpoint_override={endpoint}")


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def s3_uri(endpoint):
    return f"s3://{BUCKET}/runs?scheme=http&region=us-east-1&endpoint_override={endpoint}"


def test_what_was_written_is_read_back(storage):
    storage.write("journal/000000.jsonl", b"first")
    storage.write("journal/000000.jsonl", memoryview(b"second and longer"))

    assert storage.read("journal/000000.jsonl") == b"second and longer"
    assert storage.exists("journal/000000.jsonl")
    assert storage.exists("journal")
    assert not storage.exists("journal/000001.jsonl")


def test_a_large_file_and_an_empty_one_survive(storage):
    large = os.urandom(12 * 2**20)
    storage.write("large.bin", large)
    storage.write("empty.bin", b"")

    assert storage.read("large.bin") == large
    assert storage.read("empty.bin") == b""


def test_listing_is_sorted_and_holds_files_of_that_folder_only(storage):
    for name in ("b.txt", "a.txt", "inner/c.txt", "inner/deeper/d.txt"):
        storage.write(name, b"x")

    assert storage.list("") == ["a.txt", "b.txt"]
    assert storage.list("inner") == ["c.txt"]
    assert storage.folders() == ["inner"]
    assert storage.list("missing") == []
    assert storage.child("missing").folders() == []


def test_child_is_the_folder_of_that_name(storage):
    child = storage.child("run-1", "blocks")
    child.write("w.bin", b"weights")

    assert storage.read("run-1/blocks/w.bin") == b"weights"
    assert storage.child("run-1").child("blocks").read("w.bin") == b"weights"


def test_pickling_keeps_the_location(storage):
    storage.write("x", b"1")

    assert pickle.loads(pickle.dumps(storage)).read("x") == b"1"  # noqa: S301 - our own bytes


def test_deleting_twice_is_fine(storage):
    storage.write("x", b"1")
    storage.delete("x")
    storage.delete("x")

    assert not storage.exists("x")


def test_missing_file_is_an_error_that_names_the_location(storage):
    with pytest.raises(StorageError, match=r"could not read nothing.bin from .*no such file") as e:
        storage.read("nothing.bin")

    assert e.value.subject == storage.shown_uri


def test_open_file_reads_at_any_position(storage):
    storage.child("data").write("shard.bin", b"0123456789")
    base, mark, query = storage.uri.partition("?")
    with open_file(f"{base}/data/shard.bin{mark}{query}") as file:
        file.seek(7)
        assert file.read() == b"789"
        file.seek(2)
        assert file.read(3) == b"234"


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_shard_in_an_object_store_is_opened_like_a_local_one(kind, s3_client, s3_server):
    table = make_table(np.arange(12, dtype=np.uint8).reshape(4, 3), [0, 1, 0, 1])
    uri = s3_uri(s3_server).replace("?", "/shards/node_000.data?")
    if kind == "arrow":
        write_shard(uri, table)
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        s3_client.put_object(
            Bucket=BUCKET, Key="runs/shards/node_000.data", Body=sink.getvalue().to_pybytes()
        )
    dataset = NodeDataset.open(ShardSource(uri=uri))
    inputs, labels = dataset.batch(np.array([3, 0]))

    np.testing.assert_allclose(inputs * 255, [[9, 10, 11], [0, 1, 2]], atol=1e-5)
    assert labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"shards.*no such file") as caught:
        NodeDataset.open(ShardSource(uri=uri.replace("node_000", "node_001")))
    assert "endpoint_override" not in str(caught.value)


@pytest.mark.parametrize("name", ["../outside", "a//b", "/etc/passwd", "a/../../b", ".."])
def test_names_that_lead_outside_are_refused(storage, name):
    with pytest.raises(StorageError, match="not a name inside this folder"):
        storage.write(name, b"x")
    with pytest.raises(StorageError, match="not a name inside this folder"):
        storage.child(name)


def test_check_writable_passes_and_leaves_no_files(storage, tmp_path):
    storage.child("run").check_writable()

    assert storage.list("") == []
    assert storage.child("run").list("") == []
    assert list(tmp_path.rglob("*")) == []


def test_check_writable_leaves_no_object_but_the_folder_marker(s3_client, s3_server):
    Storage(s3_uri(s3_server)).check_writable()

    found = s3_client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    assert {(one["Key"], one["Size"]) for one in found} <= {("runs/", 0)}


def test_check_writable_refuses_a_file_in_the_way(tmp_path):
    (tmp_path / "taken").write_bytes(b"")

    with pytest.raises(StorageError, match=r"not a folder|Not a directory"):
        Storage(str(tmp_path / "taken" / "runs")).check_writable()


def test_check_writable_refuses_a_missing_bucket(s3_client, s3_server):
    with pytest.raises(StorageError, match="bucket does not exist"):
        Storage(s3_uri(s3_server).replace(BUCKET, "no-such-bucket")).check_writable()


def test_relative_paths_do_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.write("x", b"1")

    assert (tmp_path / "runs" / "x").read_bytes() == b"1"
    assert storage.uri == str(tmp_path / "runs")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_unreachable_endpoint_fails_soon_in_one_line(scheme, s3_client):
    port = unused_port()
    user = "anonymous@" if scheme == "gs" else ""
    uri = f"{scheme}://{user}{BUCKET}/runs?scheme=http&endpoint_override=127.0.0.1:{port}"
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        Storage(uri, timeout_seconds=4).check_writable()

    assert time.monotonic() - started < 8
    assert "\n" not in str(caught.value)
    assert f"{scheme}://{BUCKET}/runs" in str(caught.value)


def test_a_server_that_never_answers_is_given_up_on(s3_client):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        storage = Storage(s3_uri(f"127.0.0.1:{silent.getsockname()[1]}"), timeout_seconds=1)
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"within 1 seconds|imeout|NETWORK"):
            storage.read("x")

        assert time.monotonic() - started < 6


def test_a_process_whose_storage_hangs_can_still_exit(s3_client):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = s3_uri(f"127.0.0.1:{silent.getsockname()[1]}")
        program = (
            "from ray_snake.storage import Storage\n"
            f"try: Storage({uri!r}, timeout_seconds=1).read('x')\n"
            "except Exception as error: print(type(error).__name__)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], timeout=20, capture_output=True, text=True, check=False
        )

    assert done.stdout.strip() == "StorageError"


def test_credentials_never_show(s3_client):
    uri = (
        f"s3://AKIAEXAMPLE:hunter2secret@{BUCKET}/runs?scheme=http&region=us-east-1"
        f"&endpoint_override=127.0.0.1:{unused_port()}"
    )
    storage = Storage(uri, timeout_seconds=3)
    with pytest.raises(StorageError) as caught:
        storage.write("x", b"1")

    for text in (str(caught.value), repr(caught.value), repr(storage), storage.shown_uri):
        assert "hunter2secret" not in text
        assert "AKIAEXAMPLE" not in text


def test_nor_do_they_where_a_run_is_asked_for(s3_client, s3_server):
    endpoint = quote(s3_server, safe="")
    uri = f"s3://AKIAEXAMPLE:hunter2secret@{BUCKET}/runs?scheme=http&endpoint_override={endpoint}"
    storage = Storage(uri)
    config = SnakeConfig()
    RunFolder.create(storage.child("here"), config, ("a",), custom_model=False)
    files = BlockFiles(storage.child("here"))

    def again():
        choose_run(storage, "digits", "here", resume=False)

    for ask in (
        lambda: choose_run(storage, "digits", "nowhere", resume=True),
        lambda: choose_run(storage, "digits", None, resume=True),
        again,
        lambda: RunFolder.open(storage.child("nowhere").uri),
        lambda: RunFolder.open(storage.child("here").uri).states(),
        lambda: RunFolder.open(storage.child("here").uri).check_resumable(config, ("b",), dict),
        lambda: files.read(0, 1),
    ):
        with pytest.raises(SnakeError) as caught:
            ask()
        for text in (str(caught.value), repr(caught.value)):
            assert "hunter2secret" not in text
            assert "AKIAEXAMPLE" not in text


def test_a_secret_key_with_a_slash_is_refused_without_showing_it():
    with pytest.raises(StorageError, match="%2F") as caught:
        Storage("s3://AKIAEXAMPLE:hunter2/secret@bucket/runs")

    assert "hunter2" not in repr(caught.value)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("hdfs://host/runs", "'hdfs' is not supported"),
        ("s3://", "names no bucket"),
        ("s3:///runs", "names no bucket"),
        ("s3://bucket/runs?endpoint=localhost", "unknown option 'endpoint'"),
        ("file://host/runs", "three slashes"),
        ("", "location is empty"),
    ],
)
def test_a_location_that_makes_no_sense_is_refused(uri, problem):
    with pytest.raises(StorageError, match=problem):
        Storage(uri)


def test_split_uri_keeps_the_options():
    assert split_uri("s3://b/a/x.arrow?scheme=http") == ("s3://b/a?scheme=http", "x.arrow")
    assert split_uri("/data/x.arrow") == ("/data", "x.arrow")
    with pytest.raises(StorageError, match="names no file"):
        split_uri("s3://bucket")


def test_a_write_killed_at_any_moment_leaves_old_content_whole(tmp_path):
    size = 24 * 2**20
    storage = Storage(str(tmp_path))
    storage.write("block.bin", b"a" * size)
    program = (
        "import sys\n"
        "from ray_snake.storage import Storage\n"
        f"storage = Storage({str(tmp_path)!r})\n"
        f"contents = [letter * {size} for letter in (b'b', b'a')]\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for content in contents: storage.write('block.bin', content)\n"
    )
    interrupted = 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        try:
            assert writer.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 20
            # Kill in the midst of a write: while its temporary file exists.
            while not list(tmp_path.glob(".*.tmp")) and time.monotonic() < deadline:
                pass
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait(timeout=20)
            writer.stdout.close()
        left = list(tmp_path.glob(".*.tmp"))
        interrupted += len(left)

        content = storage.read("block.bin")
        assert content in (b"a" * size, b"b" * size)
        assert storage.list("") == ["block.bin"]
        for file in left:
            file.unlink()
    assert interrupted > 0


def test_readers_see_old_or_new_content_while_writers_race(tmp_path):
    storage = Storage(str(tmp_path))
    contents = [bytes([letter]) * 2**20 for letter in b"abcd"]
    storage.write("x", contents[0])
    writers = [
        threading.Thread(target=lambda c=c: [storage.write("x", c) for _ in range(5)])
        for c in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert storage.read("x") in contents
    for writer in writers:
        writer.join()

    assert Path(storage.uri, "x").stat().st_size == 2**20
    assert storage.list("") == ["x"]


def test_listing_a_folder_that_is_being_made_never_fails(tmp_path):
    storage = Storage(tmp_path)
    folder = tmp_path / "journal"
    stop = threading.Event()

    def make_and_remove():
        while not stop.is_set():
            folder.mkdir()
            folder.rmdir()

    maker = threading.Thread(target=make_and_remove)
    maker.start()
    try:
        for _ in range(3000):
            assert storage.list("journal") == []
    finally:
        stop.set()
        maker.join()
