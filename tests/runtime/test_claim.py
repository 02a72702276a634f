"""One run, several drivers: the last one to take it up writes, the others end."""

import asyncio
import socket

import pytest
from fakes import FakeCluster, Fault, make_config, make_driver, run, until

from ray_snake.errors import StorageError, TakenOverError
from ray_snake.runtime import driver as driver_module
from ray_snake.runtime.claim import FILE, Claim
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.states import Failed, Finished
from ray_snake.storage import Storage


def test_who_took_a_run_up_may_write_to_it(storage):
    claim = Claim(storage)
    claim.take()
    claim.check()
    claim.take()


def test_who_took_it_up_before_is_told_by_whom_and_what_to_do(storage):
    first, second = Claim(storage), Claim(storage)
    first.take()
    second.take()
    second.check()
    for act in (first.check, first.take):
        with pytest.raises(TakenOverError) as caught:
            act()
        text = str(caught.value)
        assert f"{storage.uri} was taken over by a driver on {socket.gethostname()} at 2" in text
        assert "leave it to that one, or end it and --resume here" in text


def test_a_mark_that_is_gone_or_is_none_keeps_nobody_from_writing(storage):
    claim = Claim(storage)
    claim.take()
    storage.write(FILE, b"{}")
    claim.check()
    storage.delete(FILE)
    claim.check()


def test_a_mark_that_can_not_be_read_does(storage):
    claim = Claim(storage)
    claim.take()
    storage.delete(FILE)
    storage.write(f"{FILE}/in_its_place", b"")
    with pytest.raises(StorageError):
        claim.check()


def test_credentials_stay_out_of_the_message(storage):
    class Secretive(Storage):
        @property
        def shown_uri(self):
            return "s3://bucket/run"

    claim = Claim(Secretive(storage.uri))
    claim.take()
    Claim(storage).take()
    with pytest.raises(TakenOverError, match="run s3://bucket/run was"):
        claim.check()


def test_a_driver_ends_soon_in_the_middle_of_a_visit_and_the_other_finishes(
    storage, monkeypatch, tmp_path
):
    monkeypatch.setattr(driver_module, "LOOK_SECONDS", 0.01)
    clean = run(make_driver(FakeCluster(), make_config(), Storage(str(tmp_path / "clean"))).run())
    stuck = FakeCluster(faults={("visit", 4): [Fault.HANGS]})

    async def scenario():
        first = make_driver(stuck, make_config(), storage)
        running = asyncio.ensure_future(first.run())
        await until(lambda: len(stuck.visits) == 4 and len(Journal(storage).visits) == 3)
        cluster = FakeCluster(stored=dict(stuck.stored))
        second = await make_driver(cluster, make_config(), storage).run()
        return await running, second

    ended, finished = run(scenario())
    assert isinstance(ended, Failed)
    assert isinstance(ended.error, TakenOverError)
    assert isinstance(finished, Finished)
    assert finished.weights_sha256 == clean.weights_sha256
    assert [one.visit for one in Journal(storage).visits] == list(range(1, 10))
    assert sorted(stuck.killed) == [(0,), (1,), (2,)]


def test_going_back_to_the_journal_takes_no_run_from_another_driver(storage):
    cluster = FakeCluster(faults={("visit", 4): [Fault.LACKS_BLOCKS]})

    async def scenario():
        driver = make_driver(cluster, make_config(), storage)
        while len(cluster.visits) < 4:
            await driver.step()
        Claim(storage).take()
        return await driver.run()

    ended = run(scenario())
    assert isinstance(ended, Failed)
    assert isinstance(ended.error, TakenOverError)
