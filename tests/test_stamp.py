"""`make stamp` writes the public address into lessons, README and pyproject.toml, all from one place, and twice is once."""

import re
import shutil

import nbformat
import pytest

from tools import stamp
from utils import ROOT


@pytest.fixture
def copy(tmp_path):
    """The files that are stamped, as in a copy without an address."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    stamp.stamp("", tmp_path)
    return tmp_path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everywhere_from_one_place(copy):
    assert stamp.slug(copy) == ""
    changed = stamp.stamp("ada/lora-course", copy)
    lessons = sorted((copy / "notebooks").glob("*.ipynb"))
    assert set(changed) == {"pyproject.toml", "README.md", *(f"notebooks/{path.name}" for path in lessons)}
    assert stamp.slug(copy) == "ada/lora-course"
    readme = (copy / "README.md").read_text()
    assert "git clone https://github.com/ada/lora-course.git\ncd lora-course\n" in readme
    assert "actions/workflows/test.yml/badge.svg" in readme
    for path in lessons:
        notebook = nbformat.read(path, as_version=4)
        url = f"https://colab.research.google.com/github/ada/lora-course/blob/main/notebooks/{path.name}"
        assert notebook.cells[0].source.count(url) == 1 and readme.count(url) == 1
        assert 'os.environ.get("COURSE_REPO", "https://github.com/ada/lora-course.git")' in notebook.cells[1].source
    assert len({nbformat.read(path, as_version=4).cells[1].source for path in lessons}) == 1
    assert not [name for name in contents(copy) if "/." in f"/{name}"], "nothing half-written is left"


@pytest.mark.parametrize("wanted", ["ada/lora-course", "a/b", "A-1/_x.y-z.", f"{'a' * 39}/{'b' * 100}", "ada_corp/git"])
def test_names_that_github_takes(wanted, monkeypatch, capsys):
    monkeypatch.setattr(stamp, "stamp", lambda slug: [])
    assert stamp.main([wanted]) == 0 and f"Stamped with {wanted}" in capsys.readouterr().out


def test_twice_is_once_a_fork_is_stamped_anew_and_the_way_back_is_exact(copy):
    before = contents(copy)
    stamp.stamp("ada/lora-course", copy)
    once = contents(copy)
    assert stamp.stamp("ada/lora-course", copy) == [] and contents(copy) == once
    stamp.stamp("a-fork/other.name", copy)
    assert not [name for name, content in contents(copy).items() if b"ada/lora-course" in content]
    stamp.stamp("", copy)
    assert contents(copy) == before
    assert not re.search("colab-badge|git clone https", (copy / "README.md").read_text())


def test_nothing_is_written_where_a_place_is_missing(copy):
    path = copy / "notebooks" / "04_roberta_sst2.ipynb"
    path.write_text(path.read_text().replace("<!-- badge -->", ""))
    before = contents(copy)
    with pytest.raises(ValueError, match="no place marked <!-- badge -->"):
        stamp.stamp("ada/lora-course", copy)
    assert contents(copy) == before


@pytest.mark.parametrize(
    "wanted",
    ["", "lora-course", "https://github.com/ada/lora-course", "a/b/c", "ada/", "-a/b", "a b/c", "/b", "a/b\n", "a/b c"]
    + [
        "ada/.",
        "ada/..",
        "ada/.b",
        "ada/-b",
        "ada/b.git",
        "ada/B.GIT",
        "ada/b.wiki",
        ".ada/b",
        "a-/b",
        "a--b/c",
        "../b",
    ]
    + [f"{'a' * 40}/b", f"a/{'b' * 101}", "äda/b", "a/größe", "a/b\\c", 'a/"; true; "', "$(true)/b", "ſ/b"],
)
def test_what_is_no_repository_is_refused_in_a_sentence(wanted, capsys):
    assert stamp.main([wanted]) == 2
    error = capsys.readouterr().err
    assert error.startswith(repr(wanted)) and "make stamp REPO=owner/name" in error and error.count("\n") == 1
