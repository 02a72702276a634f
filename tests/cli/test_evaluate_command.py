import json

import numpy as np
import pytest

from ray_snake.data import make_table, write_shard


def test_gives_the_metrics_of_the_runs_last_evaluation(trained):
    workplace, finished = trained
    judged = workplace.call_forked("evaluate", "runs/digits", "--json")
    assert judged.returncode == 0
    (line,) = judged.stdout.splitlines()
    found = json.loads(line)
    expected = json.loads(finished.stdout)["metrics"]
    assert found["run"] == str(workplace.runs / "digits")
    assert found["samples"] == 360
    assert found["metrics"]["accuracy"] == expected["accuracy"]
    assert found["metrics"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_judges_on_other_rows(trained):
    workplace, _ = trained
    rows = make_table(np.zeros((7, 1, 8, 8), dtype=np.uint8), np.zeros(7, dtype=np.int64))
    write_shard(workplace.folder / "zeros.arrow", rows)
    judged = workplace.call_forked("evaluate", "runs/digits", "--data", "zeros.arrow")
    assert judged.returncode == 0
    names = [line.split(": ")[0] for line in judged.stdout.splitlines()]
    assert names == ["loss", "accuracy"]
    # Rows that are all alike are all right or all wrong.
    assert float(judged.stdout.splitlines()[1].split(": ")[1]) in (0.0, 1.0)


def test_rows_that_do_not_fit_the_model_are_refused(trained):
    workplace, _ = trained
    rows = make_table(np.zeros((7, 3, 8, 8), dtype=np.uint8), np.zeros(7, dtype=np.int64))
    write_shard(workplace.folder / "coloured.arrow", rows)
    judged = workplace.call_forked("evaluate", "runs/digits", "--data", "coloured.arrow")
    assert judged.returncode == 2
    (line,) = judged.stderr.splitlines()
    assert "coloured.arrow" in line
    assert "(3, 8, 8)" in line
