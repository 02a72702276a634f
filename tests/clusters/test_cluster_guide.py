"""The image's recipe is linted; what cluster/README.md says to run here runs here."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = Path(sysconfig.get_path("scripts"))
GUIDE = (CLUSTER / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_the_dockerfile_has_nothing_that_a_linter_minds():
    done = subprocess.run(
        [SCRIPTS / "hadolint", CLUSTER / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_image_gets_what_its_recipe_copies():
    copied = re.findall(r"^COPY (.+)$", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    sources = [name for line in copied for name in line.split()[:-1]]
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    for name in sources:
        assert (ROOT / name).exists()
        assert f"!{name}" in let_in


def test_the_commands_that_are_marked_are_found():
    assert len(COMMANDS) >= 9


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like the repository's root, with a home of its own."""
    folder = tmp_path_factory.mktemp("guide")
    for name in ("jobs", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_that_can_run_here_does(command, place):
    outside = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
    environment = outside | {
        "HOME": str(place),
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_every_file_that_the_guide_names_is_there():
    for name in re.findall(r"cluster/[\w/.-]+\.(?:yaml|toml)|cluster/Dockerfile", GUIDE):
        assert (ROOT / name).exists(), name
