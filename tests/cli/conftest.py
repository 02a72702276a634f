import pytest
from workplaces import DIGITS, MODEL, SHORT, Workplace


@pytest.fixture
def workplace(tmp_path):
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A workplace with a finished run of an embedded cluster, and what the command said."""
    workplace = Workplace(tmp_path_factory.mktemp("trained"))
    config = workplace.write(MODEL + DIGITS + SHORT)
    finished = workplace.call("train", config, "--json")
    assert finished.returncode == 0, finished.stderr
    return workplace, finished
