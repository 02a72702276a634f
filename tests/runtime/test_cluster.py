import json
import os
import subprocess
import sys
import tempfile

EMBEDDED = """
import json, os
from pathlib import Path
from ray_snake.runtime.cluster import connected

def commands():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield (entry / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                pass

before = dict(os.environ)
with connected("local"):
    started = [command for command in commands() if os.environ["RAY_TMPDIR"] in command]
changed = sorted(name for name, text in os.environ.items() if before.get(name) != text)
print(json.dumps({"started": started, "changed": changed}))
"""


def test_an_embedded_cluster_starts_only_what_a_run_uses():
    # Not pytest's own temporary folder: a socket's path has to be short.
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HOME": folder, "RAY_TMPDIR": folder}
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-c", EMBEDDED],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert any("raylet" in command for command in seen["started"])
    for service in ("log_monitor.py", "monitor.py", "dashboard.py"):
        assert not [command for command in seen["started"] if service in command]
    # What was set for Ray's processes is not left to whatever the program starts next.
    assert not [name for name in seen["changed"] if name.startswith("RAY_raylet")]
    assert "RAY_event_stats" not in seen["changed"]
