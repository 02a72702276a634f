"""`ray-snake doctor` says what works, and what to do about what does not."""

import json


def test_where_everything_works_it_says_so_and_leaves_nothing_behind(workplace):
    before = {*workplace.folder.iterdir()}
    done = workplace.call("doctor", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["works"]
    found = {one["subject"]: one for one in answer["findings"]}
    assert {"versions", "this machine", "storage", "Ray"} <= found.keys()
    assert "torch" in found["versions"]["found"]
    assert found["storage"]["found"].startswith(str(workplace.runs))
    assert found["Ray"]["found"] == "starts on this machine and works, machines: 1"
    assert {*workplace.folder.iterdir()} - before <= {workplace.home}
    for one in answer["findings"]:
        assert f"{one['subject']}: {one['found']}" in done.stderr


def test_all_that_is_broken_is_said_at_once_each_in_one_line_with_a_remedy(workplace):
    workplace.write("", name="file")
    done = workplace.call_forked("doctor", "--storage", "file/runs", "--address", "localhost:1")
    assert done.returncode == 1
    broken = [line for line in done.stdout.splitlines() if line.startswith("BROKEN ")]
    assert [line.split(": ")[0] for line in broken] == ["BROKEN storage", "BROKEN cluster"]
    assert "/file/runs" in broken[0]
    assert broken[1].endswith("give the address of a running head, or none for an embedded one")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_token_that_is_not_sent_is_noted_and_a_dashboard_that_is_none_is_broken(workplace):
    done = workplace.call_forked("doctor", "--address", "http://localhost:1", "--json")
    assert done.returncode == 1
    found = {one["subject"]: one for one in json.loads(done.stdout)["findings"]}
    assert (found["token"]["state"], found["dashboard"]["state"]) == ("note", "broken")
    assert "RAY_AUTH_MODE=token" in found["token"]["remedy"]
    assert "--address http://localhost:1" in found["dashboard"]["found"]
