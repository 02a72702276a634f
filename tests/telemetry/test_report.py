"""What the page of a run says."""

import re
from html.parser import HTMLParser

import pytest

from ray_snake.config import SnakeConfig
from ray_snake.runtime.records import BlockRecord, JoinRecord, LeaveRecord, StartRecord
from ray_snake.telemetry.report import MOST_INCIDENTS, render_report

NAMES = ("clinic-0", "clinic-1")
CONFIG = SnakeConfig.from_tree({"snake": {"trips": 2, "spans": [[0, 1], [2, 3]]}, "seed": 7})
START = StartRecord(
    blocks=[BlockRecord(block=block, version=0, bytes=8, checksum="0") for block in range(5)],
    rows=(10, 20),
    finished_at=1000.0,
)
# Elements that have no end.
EMPTY = {"br", "img", "meta"}


class Page(HTMLParser):
    """A page's text by the element that it is in, and what elements lead to."""

    def __init__(self, page):
        super().__init__()
        self.text = {}
        self.tags = []
        self.addresses = []
        self._open = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in EMPTY:
            self._open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and data.strip():
            self.text.setdefault(self._open[-1], []).append(data.strip())


def rendered(records, *, config=CONFIG, names=NAMES, run="/data/runs/ward"):
    return render_report(run, config, names, records)


def page(records, **changes):
    return Page(rendered(records, **changes))


def facts(found):
    return dict(zip(found.text["dt"], found.text["dd"], strict=True))


@pytest.fixture
def records(visit_record, evaluation_record):
    return [START, *(visit_record(number) for number in range(1, 5)), evaluation_record(4)]


def test_the_page_is_called_after_the_run_and_says_how_it_stands(records):
    found = page(records)
    assert found.text["h1"] == ["ward"]
    assert "ward" in found.text["title"][0]
    about = " ".join(found.text["p"])
    assert "/data/runs/ward" in rendered(records)
    assert "Strategy snake, model cnn, 2 nodes: finished." in about


def test_what_the_run_came_to_stands_first(records):
    found = facts(page(records))
    assert found["accuracy on held-out rows"] == "87.50%"
    assert found["loss on held-out rows"] == "0.375"
    assert (found["trips"], found["visits"], found["samples"]) == ("2", "4", "400")
    assert found["bytes moved"] == "10.0 KiB"
    assert found["begun"] == "1970-01-01 00:16:40 UTC"
    assert "refused visits" not in found


def test_each_node_has_a_line(records):
    cells = page(records).text["td"]
    assert cells[cells.index("clinic-0") :][:6] == [
        "clinic-0",
        "10",
        "2",
        "200",
        "2.0 s",
        "6.0 KiB",
    ]


def test_a_run_that_goes_on_says_where_it_is(records):
    about = " ".join(page(records[:4]).text["p"])
    assert "in trip 2 of 2; last heard of 1970-01-01 00:16:46 UTC" in about


def test_a_run_that_has_done_nothing_has_a_page_too():
    for records in ([], [START]):
        found = page(records)
        assert "No visit has ended yet." in found.text["p"]
        assert "img" not in found.tags


def test_what_did_not_go_as_planned_is_told(records, visit_record):
    moment = {"visit": 4, "trip": 2, "finished_at": 1.0}
    joined = JoinRecord(
        node=2,
        name="late",
        uri="late.arrow",
        rows=30,
        sample_shape=(2,),
        integer_inputs=False,
        classes=2,
        request="a",
        **moment,
    )
    left = LeaveRecord(node=0, rows=10, request="b", **moment)
    refused = visit_record(2, accepted=False, reason="loss is not finite")
    slow = visit_record(3, late=True, steps=3, why="2.0 times as long as the middling node")
    told = [START, visit_record(1), refused, slow, joined, left]
    cells = " | ".join(page(told).text["td"])
    assert "2 | clinic-0 | refused: loss is not finite" in cells
    assert (
        "3 | clinic-1 | stopped at its deadline after 3 steps; "
        "2.0 times as long as the middling node"
    ) in cells
    assert "4 | late | joined with 30 rows" in cells
    assert "4 | clinic-0 | left" in cells
    assert "clinic-0 (left)" in cells
    assert facts(page(told))["refused visits"] == "1"


def test_a_long_list_ends_with_how_much_is_left(visit_record):
    visits = [visit_record(number, why="slow") for number in range(1, MOST_INCIDENTS + 8)]
    found = page([START, *visits])
    assert found.text["td"].count("slow") == MOST_INCIDENTS
    assert "And 7 more." in found.text["p"]


def test_the_settings_can_be_trained_again(records, tmp_path):
    (tmp_path / "again.toml").write_text("\n".join(page(records).text["pre"]))
    assert SnakeConfig.load(tmp_path / "again.toml") == CONFIG


def test_nothing_comes_from_elsewhere_and_nothing_runs(records):
    found = page(records)
    assert "script" not in found.tags
    assert len(found.addresses) == 6
    assert all(one.startswith("data:image/svg+xml;base64,") for one in found.addresses)
    assert not re.search(r"url\(|@import", rendered(records))


def test_names_are_text_and_no_markup(visit_record):
    name = "<script>alert(1)</script>"
    found = page([START, visit_record(1, node_name=name, why="slow")], names=(name, "b"))
    assert "script" not in found.tags
    assert found.text["td"].count(name) == 2


def test_credentials_stay_out_of_it(records):
    config = SnakeConfig.from_tree(
        {
            "data": {"shards": ["s3://bucket/a.arrow?access_key=AKIA&secret_key=hidden"]},
            "storage": {"uri": "s3://AKIA:hidden@bucket/runs"},
        }
    )
    text = rendered(records, config=config, run="s3://AKIA:hidden@bucket/runs/ward?region=x")
    assert "hidden" not in text
    assert "AKIA" not in text
    assert "s3://bucket/runs/ward" in text
    assert "s3://bucket/a.arrow" in text
