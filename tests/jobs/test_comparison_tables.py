"""The comparison's tables and pictures, of rows that no run has made."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "benchmarks"))
from accuracy import setups
from comparison.tables import MARK, by_partition, plot, write_results


def row(strategy, partition="iid", seed=1, accuracy=0.5, norm="fixbn"):
    point = {"samples": 10, "bytes": 10, "serial_steps": 10, "accuracy": accuracy}
    return {
        "strategy": strategy,
        "norm": norm,
        "partition": partition,
        "seed": seed,
        "accuracy": accuracy,
        "fluctuation": 0.0,
        "samples": 10,
        "bytes": 10,
        "serial_steps": 10,
        "peak_memory_bytes": 10,
        "flops": 10,
        "curve": [point, {**point, "samples": 20, "bytes": 20, "serial_steps": 20}],
    }


@pytest.mark.parametrize("strategies", [1, 21, 70])
def test_there_are_looks_for_every_strategy(strategies, tmp_path):
    rows = [row(f"strategy-{number}", accuracy=0.01 * number) for number in range(strategies)]
    plot(rows, tmp_path / "picture.png", title="iid")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_there_is_a_picture_for_each_norm_and_the_snake_is_in_that_of_its_rivals(tmp_path):
    rows = [row("snake", seed=seed, norm=norm) for seed in (1, 2) for norm in ("fixbn", "group")]
    rows += [row("fedavg", norm=norm) for norm in ("fixbn", "group", "batch")]
    rows += [row("snake-no-la"), {**row("local"), "curve": []}]
    write_results(rows, tmp_path, name="small", made_by="")
    pictures = {file.stem.removeprefix("small-iid-") for file in tmp_path.glob("*.png")}
    assert pictures == {"rivals", "rivals-group", "rivals-batch", "snakes"}
    page = (tmp_path / "small.md").read_text()
    assert all(f"](small-iid-{one}.png)" in page for one in pictures)


def test_a_snake_of_another_norm_alone_is_compared_with_its_rivals_only(tmp_path):
    rows = [row(name, norm="group") for name in ("fedavg", "snake")]
    write_results(rows, tmp_path, name="paper", made_by="")
    assert [file.name for file in tmp_path.glob("*.png")] == ["paper-iid-rivals-group.png"]


def test_what_stands_above_the_mark_is_kept(tmp_path):
    for made_by in ("the first time", "the second time"):
        write_results([row("snake")], tmp_path, name="small", made_by=made_by)
        page = tmp_path / "small.md"
        assert page.read_text().count(MARK) == page.read_text().count("| snake |") == 1
        page.write_text(page.read_text().replace(MARK, f"Read {made_by}.\n\n{MARK}"))
    head, _, rest = page.read_text().partition(MARK)
    assert head.split("\n\n")[:2] == ["Read the first time.", "Read the second time."]
    assert "the first time" not in rest


def test_partitions_are_compared_for_strategies_that_have_several():
    rows = [row("snake", "iid", seed, 0.5 + seed / 100) for seed in (1, 2, 3)]
    rows += [row("snake", "alpha0.1"), row("fedavg", "iid", 1, 0.25)]
    rows += [row("snake", one, norm="group", accuracy=0.25) for one in ("iid", "alpha0.1")]
    rows += [row("local", "alpha0.1", accuracy=0.125), row("local", accuracy=0.25)]
    assert by_partition(rows).splitlines() == [
        "| strategy | iid | alpha0.1 |",
        "| --- | --- | --- |",
        "| local | 0.250 (1 seed) | 0.125 (1 seed) |",
        "| snake | 0.520 ± 0.010 | 0.500 (1 seed) |",
        "| snake, GroupNorm | 0.250 (1 seed) | 0.250 (1 seed) |",
    ]
    assert by_partition(rows[:3]) == ""


def test_a_variant_is_trained_on_its_own_partitions_with_its_own_norms_unless_others_are_named():
    def places(*asked):
        return [(one.partition, one.norm) for one in setups(*asked)]

    assert places(["snake-no-la"], [], []) == [("alpha0.1", "fixbn")]
    assert places(["snake-no-la"], ["iid"], ["group"]) == [("iid", "group")]
    partitions = ("iid", "alpha0.5", "alpha0.1")
    assert places(["fedprox+la"], [], []) == [(one, "fixbn") for one in partitions]
    assert places(["snake"], ["iid"], []) == [
        ("iid", one) for one in ("fixbn", "batch", "group", "none")
    ]
    assert {one.name for one in setups([], [], [])} > {"centralised", "fedavg", "split+la", "snake"}
