import pytest
from heads import CONFIG, started_head


@pytest.fixture(scope="session")
def head():
    with started_head() as found:
        yield found


@pytest.fixture
def folder(tmp_path):
    """A working directory with settings in it."""
    (tmp_path / "digits.toml").write_text(CONFIG)
    return tmp_path
