import pages
import pytest

FIGURES = [
    "Accuracy on held-out rows",
    "Training loss",
    "What each visit trained",
    "Who worked when",
    "Coverage",
    "Bytes moved",
]


def test_a_run_becomes_one_page_that_a_browser_shows(trained):
    workplace, _ = trained
    out = workplace.folder / "page" / "report.html"
    out.parent.mkdir()
    ended = workplace.call("report", "runs/digits", "--out", str(out))
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert ended.stderr == f"wrote {out}\n"
    assert [one.name for one in out.parent.iterdir()] == ["report.html"]
    shown = pages.show(out)
    assert shown.title == "digits - ray_snake"
    assert shown.headings == ["digits", *FIGURES, "Nodes", "Settings"]
    assert len(shown.pictures) == len(FIGURES)
    assert min(shown.pictures) > 500
    assert shown.sideways == 0
    assert shown.fetched == [out.as_uri()]
    assert shown.complaints == []


def test_a_page_that_is_there_is_replaced(trained):
    workplace, _ = trained
    out = workplace.folder / "old.html"
    out.write_text("old")
    assert workplace.call_forked("report", "runs/digits", "--out", "old.html").returncode == 0
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--out", "a.html"], "holds no run (there is no run.json)"),
        (
            ["runs/digits", "--out", "missing/a.html"],
            "--out missing/a.html: is in no folder: missing",
        ),
        (["runs/digits", "--out", "runs"], "--out runs: is a folder; name a file"),
        (["runs/digits"], "Missing option '--out'"),
    ],
)
def test_what_can_not_be_done_is_refused_in_one_line(trained, arguments, said):
    workplace, _ = trained
    ended = workplace.call_forked("report", *arguments)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr
    assert not (workplace.folder / "a.html").exists()


def test_without_matplotlib_it_says_what_to_install(trained, tmp_path, monkeypatch):
    workplace, _ = trained
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['matplotlib'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = workplace.call("report", "runs/digits", "--out", "b.html")
    assert ended.returncode == 2
    assert ended.stderr == (
        "ray-snake: report: its figures need matplotlib; pip install 'ray-snake[plots]'\n"
    )
