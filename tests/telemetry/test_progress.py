import io
from dataclasses import replace

import pytest
from rich.console import Console

from ray_snake.planning.span import Span, Visit
from ray_snake.runtime.events import (
    Evaluated,
    NodeJoined,
    NodeLeft,
    NodeLost,
    NodeMoved,
    NodeReady,
    RunEnded,
    RunStarted,
    VisitDecided,
    VisitProgress,
    VisitStarted,
)
from ray_snake.telemetry.progress import ConsoleProgress

STARTED = RunStarted(
    nodes=("clinic-0", "clinic-1"),
    block_names=("conv1", "conv2", "head"),
    block_bytes=(1024, 2048, 1024),
    trips=3,
    visits=6,
    done=0,
)


def ready(node):
    return NodeReady(node=node, name=f"clinic-{node}", samples=100, seconds=3.1)


def sent(number):
    return VisitStarted(
        visit=Visit(
            number=number, trip=(number + 1) // 2, node=number % 2, span=Span(1, 3), trained=(1, 2)
        )
    )


def lines(*events):
    output = io.StringIO()
    with ConsoleProgress(Console(file=output)) as progress:
        for event in events:
            progress.on_event(event)
    return output.getvalue().splitlines()


@pytest.fixture
def terminal():
    output = io.StringIO()
    console = Console(
        file=output, force_terminal=True, force_interactive=True, width=140, color_system=None
    )
    return console, output


def test_says_how_many_nodes_are_ready_before_the_first_visit():
    assert lines(STARTED, ready(0), ready(1)) == [
        "2 nodes, 3 blocks (4.0 KiB), 3 trips, 6 visits",
        "starting nodes 0/2 ready",
        "starting nodes 1/2 ready (clinic-0: 100 samples, 3.1 s)",
        "starting nodes 2/2 ready (clinic-1: 100 samples, 3.1 s)",
    ]


def test_nodes_that_are_ready_before_the_plan_is_known_are_counted():
    assert lines(ready(0), STARTED)[0].startswith("starting nodes 1 ready")
    assert lines(ready(0), STARTED)[-1] == "starting nodes 1/2 ready"


def test_a_decided_visit_is_one_line_with_its_numbers(visit_record):
    assert lines(STARTED, sent(1), VisitDecided(record=visit_record(1)))[-1] == (
        "trip 1/3  visit 1/6  node clinic-1  span 2-3  2.0 s  loss 1  train accuracy 0.500  "
        "10 s left  moved 1.0 KiB"
    )


def test_accuracy_is_the_latest_evaluation_s_and_bytes_add_up(visit_record, evaluation_record):
    shown = lines(
        STARTED,
        VisitDecided(record=visit_record(1)),
        VisitDecided(record=visit_record(2)),
        Evaluated(record=evaluation_record(2)),
        VisitDecided(record=visit_record(3)),
    )
    assert shown[-2] == (
        "trip 1/3 evaluated after visit 2: loss 0.375, accuracy 0.875 (360 samples, 0.5 s)"
    )
    assert "test accuracy 0.875" in shown[-1]
    assert shown[-1].endswith("6.0 s left  moved 6.0 KiB")


def test_time_left_is_shared_by_visits_under_way_together(visit_record):
    shown = lines(STARTED, sent(1), sent(2), VisitDecided(record=visit_record(1)))
    assert "5.0 s left" in shown[-1]


def test_a_resumed_run_counts_on_and_says_so(visit_record):
    resumed = RunStarted(
        nodes=("a", "b"), block_names=("x",), block_bytes=(10,), trips=3, visits=6, done=4
    )
    shown = lines(resumed, VisitDecided(record=visit_record(5)))
    assert "resuming after visit 4/6" in shown
    assert "visit 5/6" in shown[-1]
    assert "2.0 s left" in shown[-1]


def test_nodes_that_come_and_go_are_said_and_counted(visit_record):
    shown = lines(
        STARTED,
        NodeJoined(node=2, name="late", samples=50, visits=8),
        NodeLeft(node=0, name="clinic-0", visits=5),
        NodeMoved(node=2, name="late"),
        VisitDecided(record=visit_record(3)),
    )
    assert shown[2:5] == [
        "node joined: late (50 samples); 3 nodes take part from the next trip on",
        "node left: clinic-0; 2 nodes take part",
        "node moved: late, as its machine is about to go",
    ]
    assert "visit 3/5" in shown[5]


def test_a_resumed_run_counts_its_members_alone():
    assert lines(replace(STARTED, left=(0,)))[0].startswith("1 nodes, ")


def test_refused_visit_says_why_and_leaves_the_numbers_alone(visit_record):
    refused = visit_record(2, accepted=False, reason="loss is not finite", loss=float("nan"))
    shown = lines(STARTED, VisitDecided(record=visit_record(1)), VisitDecided(record=refused))
    assert shown[-1] == "trip 1/3  visit 2/6  node clinic-0  span 2-3  refused: loss is not finite"


def test_run_end_sums_up(visit_record):
    shown = lines(STARTED, VisitDecided(record=visit_record(6)), RunEnded(weights_sha256="ab" * 32))
    assert shown[-1] == "done after visit 6/6, moved 6.0 KiB, weights abababababab"


def test_text_of_others_is_shown_as_it_is():
    lost = NodeLost(node=1, name="clinic-1", reason="died [red]\nat step 3")
    assert lines(STARTED, lost)[-1] == (
        "node lost: clinic-1 (died [red] at step 3); starting it again"
    )


def test_lines_longer_than_the_console_are_not_broken():
    output = io.StringIO()
    progress = ConsoleProgress(Console(file=output, width=40))
    progress.on_event(NodeLost(node=0, name="clinic-0", reason="x" * 200))
    assert len(output.getvalue().splitlines()) == 1


def test_terminal_keeps_one_live_line(terminal, visit_record):
    console, output = terminal
    with ConsoleProgress(console) as progress:
        progress.on_event(STARTED)
        progress.on_event(ready(0))
        progress.on_event(sent(1))
        progress.on_event(VisitDecided(record=visit_record(1)))
        progress.on_event(sent(2))
        progress.on_event(VisitProgress(visit=2, step=3, steps=4, loss=0.25))
    shown = output.getvalue()
    assert "starting nodes 1/2 ready" in shown
    last = shown.split("\r")[-1]
    assert (
        "trip 1/3 visit 2/6  clinic-0 span 1-2  step 3/4  loss 0.25  train accuracy 0.500  "
        "10 s left  moved 1.0 KiB"
    ) in last
    assert "node clinic-1  span 2-3" not in shown


def test_terminal_shows_lost_nodes_and_refused_visits_above_the_live_line(terminal, visit_record):
    console, output = terminal
    with ConsoleProgress(console) as progress:
        progress.on_event(STARTED)
        progress.on_event(NodeLost(node=1, name="clinic-1", reason="died"))
        progress.on_event(VisitDecided(record=visit_record(1, accepted=False, reason="norm 9")))
    shown = output.getvalue()
    assert "node lost: clinic-1 (died); starting it again\n" in shown
    assert "span 2-3  refused: norm 9\n" in shown


def test_closing_is_final(terminal):
    console, output = terminal
    progress = ConsoleProgress(console)
    progress.on_event(STARTED)
    progress.close()
    progress.close()
    shown = output.getvalue()
    progress.on_event(ready(0))
    assert output.getvalue() == shown


def test_default_console_is_standard_error(capsys):
    with ConsoleProgress() as progress:
        progress.on_event(STARTED)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 nodes" in captured.err
