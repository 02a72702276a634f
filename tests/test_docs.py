"""The documents say what is so: their programs run, their generated parts are current."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_settings_page_is_what_the_settings_say():
    make = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == make["page"]()


def test_the_settings_page_has_types_and_defaults_in_tomls_words():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert '| `spans` | list of lists of integers or `"none"` | `"none"` |' in text
    assert '| `choice` | list of values or `"none"` |' in text
    assert "| `each` | section | `[]` |" in text


def test_the_readme_program_trains_and_has_at_most_fifteen_lines(tmp_path):
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    token = tmp_path / "token"
    token.write_text("0" * 64)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(token)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"'accuracy': ([0-9.]+)", done.stdout)[1])
    assert accuracy > 0.85
    assert (tmp_path / "runs" / "run" / "journal").is_dir()


def test_every_command_line_of_the_readme_names_options_that_exist():
    text = (ROOT / "README.md").read_text()
    commands = [line.split("#")[0] for line in text.splitlines() if line.startswith("ray-snake ")]
    assert commands
    for command in commands:
        words = command.split()[1:]
        names = words[:2] if words[0] in ("data", "nodes") else words[:1]
        shown = subprocess.run(
            [sys.executable, "-c", "from ray_snake.cli.main import main; main()", *names, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for option in re.findall(r"--[a-z]+", command):
            assert option in shown, f"{command}: {option}"


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
