"""What can't work is refused in one line, before anything is changed."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from cluster.testbed import MachineSpec, Testbed, load_profile
from cluster.testbed.host import check_host
from cluster.testbed.profile import bits_per_second
from ray_snake.errors import ConfigError, ResourceError


def test_missing_tools_are_named_with_the_package_that_has_them(command_line, tmp_path):
    done = command_line.run("run", "--link", "1mbit", "--", "true", env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == (
        "testbed: test bed: needs 'ip', which isn't on PATH; "
        "install iproute2 (apt-get install iproute2)\n"
    )


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ResourceError, match=r"needs root .* user 1000; run it with sudo"):
        check_host()


def test_check_agrees_with_what_a_start_would_say(command_line):
    try:
        check_host()
        expected = (0, "this machine can hold a test bed\n", "")
    except ResourceError as error:
        expected = (2, "", f"testbed: {error}\n")
    done = command_line.run("check")
    assert (done.returncode, done.stdout, done.stderr) == expected


@pytest.mark.parametrize("link", ["20", "20 mbit", "fast", "0mbit", "-1mbit"])
def test_a_link_that_is_no_rate_is_refused(link):
    with pytest.raises(ValidationError, match="is no rate"):
        MachineSpec(link=link)


def test_a_rate_is_in_decimal_bits():
    assert bits_per_second("20mbit") == 20_000_000
    assert bits_per_second("1.5kbit") == 1500


def test_a_bad_link_on_the_command_line_is_one_line_and_status_2(command_line):
    done = command_line.run("run", "--link", "fast", "--", "true")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'fast' is no rate" in done.stderr


def test_a_test_bed_without_machines_is_refused():
    with pytest.raises(ConfigError, match="give 1 to 254"):
        Testbed(links=[])


def test_a_profile_sets_each_machine(tmp_path):
    profile = tmp_path / "profile.toml"
    profile.write_text(
        '[[machine]]\nlink = "none"\n[[machine]]\nlink = "5mbit"\ncpus = 4\nlabels = {site = "a"}\n'
    )
    assert load_profile(profile) == [
        MachineSpec(),
        MachineSpec(link="5mbit", cpus=4, labels={"site": "a"}),
    ]


def test_an_unknown_key_of_a_profile_is_refused_by_name(tmp_path):
    profile = tmp_path / "profile.toml"
    profile.write_text("[[machine]]\ncpu = 4\n")
    with pytest.raises(ConfigError, match="cpus"):
        load_profile(profile)
