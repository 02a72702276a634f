"""Runs as jobs of a head that asks for a token: submitted, followed, stopped, resumed."""

import json
import shutil

import pytest
from heads import JOBS, SCRIPTS, until

from ray_snake.runtime.journal import read_records
from ray_snake.storage import Storage


def test_a_submitted_run_is_followed_to_its_end(head, folder, tmp_path):
    done = head.submit(
        *("--storage", str(tmp_path / "runs"), "--name", "first", "--follow", "--json"),
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "SUCCEEDED"
    assert answer["run"] == str(tmp_path / "runs" / "first")
    # The job's own output.
    assert "Done: " in done.stderr
    found = head.status(answer["job"], folder)
    assert (found["status"], found["trip"], found["visits"]) == ("SUCCEEDED", 2, 4)
    assert [one["visits"] for one in found["nodes"]] == [2, 2]
    assert found["accuracy"] is not None
    # The same of the run by itself, without the cluster.
    shown = head.call("status", answer["run"], folder=folder)
    assert "trip 2/2, visit 4/4" in shown.stdout


def test_a_failing_job_ends_as_its_command_did_with_the_cause_in_one_line(head, folder, tmp_path):
    done = head.submit(
        *("--storage", str(tmp_path / "runs"), "--follow"),
        *("--set", "evaluation.data=/nowhere/test.arrow"),
        folder=folder,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ray-snake: job digits-")
    assert "/nowhere: could not open test.arrow" in last
    assert "Traceback" not in done.stderr


def test_the_doctor_looks_at_the_head_and_says_that_it_wants_a_token(head, folder):
    for address, subject in ((head.address, "dashboard"), (head.ray_address, "cluster")):
        done = head.call("doctor", "--address", address, "--json", folder=folder)
        assert done.returncode == 0, done.stderr
        found = {one["subject"]: one for one in json.loads(done.stdout)["findings"]}
        assert (found["token"]["state"], found[subject]["state"]) == ("works", "works")
    done = head.call(
        *("doctor", "--address", head.address, "--json"), folder=folder, RAY_AUTH_MODE="disabled"
    )
    assert done.returncode == 1
    found = {one["subject"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["dashboard"]["state"] == "broken"
    assert found["dashboard"]["remedy"].startswith("set RAY_AUTH_MODE=token")


def test_a_stopped_job_is_resumed_by_another(head, folder, tmp_path):
    runs = ("--storage", str(tmp_path / "runs"))
    long = ("--set", "snake.trips=40", "--set", "training.steps=20")
    done = head.submit(*runs, "--name", "long", *long, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["job"]
    until(lambda: head.status(job, folder).get("visits", 0) >= 2, "two visits are decided")
    # Each process has imported for itself: the driver no torch, nodes all that they need.
    assert "libtorch" not in head.libraries("ray::SnakeDriver")
    assert "libtorch" in head.libraries("ray::SnakeNode")
    stopped = head.call("submit", "--stop", job, "--address", head.address, folder=folder)
    assert stopped.returncode == 0, stopped.stderr
    assert head.status(job, folder)["status"] == "STOPPED"
    before = visits_of(tmp_path / "runs" / "long")
    assert 2 <= len(before) < 80
    resumed = head.submit(*runs, "--name", "long", *long, "--resume", "--follow", folder=folder)
    assert resumed.returncode == 0, resumed.stderr
    after = visits_of(tmp_path / "runs" / "long")
    assert after[: len(before)] == before
    assert [one.visit for one in after] == list(range(1, 81))


def visits_of(run):
    return [one for one in read_records(Storage(str(run))) if one.kind == "visit"]


def test_rays_own_command_submits_the_entry_points(head, folder, tmp_path):
    shutil.copytree(JOBS, folder / "jobs", ignore=shutil.ignore_patterns("benchmarks"))
    shutil.copy(folder / "digits.toml", folder / "jobs" / "configs" / "digits.toml")
    run = str(tmp_path / "runs" / "by-ray")
    name = ("--name", "by-ray")
    for command in (
        ("train.py", "jobs/configs/digits.toml", "--storage", str(tmp_path / "runs"), *name),
        ("evaluate.py", run),
    ):
        done = head.run(
            [
                *(SCRIPTS / "ray", "job", "submit", "--address", head.address),
                *("--working-dir", ".", "--", "python", f"jobs/{command[0]}", *command[1:]),
            ],
            folder,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy" in done.stdout
    assert len(visits_of(run)) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--storage", "runs"), "--storage: 'runs' would lie in the job's own folder"),
        (("--storage", "/runs", "--resume"), "--resume: needs the run's name"),
        (("--storage", "/runs", "--set", "snake.trips=0"), "snake.trips"),
        (("--storage", "/runs", "--working-dir", "other"), "digits.toml: is not within"),
        (("--storage", "/runs", "--runtime-env", "none.yaml"), "none.yaml: can't be read"),
    ],
)
def test_what_can_not_be_submitted_is_refused_before_anything_is_asked(
    head, folder, arguments, words
):
    done = head.submit(*arguments, folder=folder, RAY_AUTH_TOKEN="wrong")
    assert_refused(done, words)


def test_a_run_in_a_bucket_is_named_as_its_job_names_it(head, folder):
    options = "?scheme=http&endpoint_override=127.0.0.1%3A9"
    uri = f"s3://KEY:TOPSECRET@bucket/runs{options}"
    done = head.submit("--storage", uri, "--name", "far", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    head.call("submit", "--stop", answer["job"], "--address", head.address, folder=folder)
    assert answer["run"] == f"s3://KEY:TOPSECRET@bucket/runs/far{options}"
    assert "run s3://bucket/runs/far\n" in done.stderr
    assert "TOPSECRET" not in done.stderr


def test_a_wrong_token_is_refused_with_what_to_set(head, folder):
    done = head.submit("--storage", "/runs", folder=folder, RAY_AUTH_TOKEN="wrong")
    assert_refused(done, "RAY_AUTH_TOKEN")


def test_an_address_where_nobody_answers_is_refused(head, folder):
    done = head.call(
        *("submit", "digits.toml", "--storage", "/runs", "--address", "http://127.0.0.1:9"),
        folder=folder,
    )
    assert_refused(done, "no dashboard of a Ray cluster answers there")


@pytest.mark.parametrize("command", [("status", "none"), ("submit", "--stop", "none")])
def test_a_job_that_is_not_there_is_refused(head, folder, command):
    done = head.call(*command, "--address", head.address, folder=folder)
    assert_refused(done, "job none: is not known")


def assert_refused(done, words):
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert words in line
