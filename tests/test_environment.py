"""The three routes into the course (make, pip on Windows, conda) lead to the same versions, and those are the ones installed."""

import itertools
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

from tools import pins as pins_tool
from utils import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = [Requirement(line) for line in PROJECT["dependencies"]]
WANTED_DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
SYSTEMS = {
    "Linux": dict(sys_platform="linux", os_name="posix", platform_system="Linux", platform_machine="x86_64"),
    "macOS": dict(sys_platform="darwin", os_name="posix", platform_system="Darwin", platform_machine="arm64"),
    "Windows": dict(sys_platform="win32", os_name="nt", platform_system="Windows", platform_machine="AMD64"),
}
PYTHONS = ("3.11.0", "3.11.9", "3.12.7", "3.13.3", "3.14.0")


def pip_lines(file) -> list[str]:
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pins(lines, **environment) -> dict[str, Version]:
    """{package: its one version} of those lines that hold in this environment."""
    found = {}
    for pin in map(Requirement, lines):
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for {environment or 'this machine'}"
            found[name] = Version(next(iter(pin.specifier)).version)
    return found


LINES = pip_lines(ROOT / "requirements.txt")  # learners'
FIRST, *DEV = pip_lines(ROOT / "requirements-dev.txt")  # what maintainers add


def test_maintainers_get_what_learners_get_and_more():
    """Each pin stands in one of the two files, so they cannot disagree."""
    assert FIRST == "-r requirements.txt"
    names, more = ({canonicalize_name(Requirement(line).name) for line in lines} for lines in (LINES, DEV))
    assert not names & more
    assert {"torch", "jupyterlab", "nbstripout"} <= names and {"pytest", "ruff", "sphinx", "uv", "playwright"} <= more


def test_learners_need_nothing_of_what_maintainers_add():
    """All that the learners' packages ask for, by their own metadata on this machine, is in the learners' list or unpinned."""
    more, seen = pins(DEV), set()
    queue = [(canonicalize_name(need.name), need.extras) for need in WANTED]
    while queue:
        name, extras = queue.pop()
        if (name, *extras) in seen:
            continue
        seen.add((name, *extras))
        assert name not in more, f"{name} is in requirements-dev.txt, and learners need it: run `make pins`"
        for line in metadata.requires(name) or ():
            need = Requirement(line)
            if any(need.marker is None or need.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                queue.append((canonicalize_name(need.name), tuple(sorted(need.extras))))
    assert len(seen) > 100


def test_every_pin_comes_from_one_resolution(monkeypatch, tmp_path, capsys):
    """Of the second run of uv only the names are taken, whatever versions and markers it may tell."""
    everything = ["a==1 ; python_version < '3.12'", "a==2 ; python_version >= '3.12'", "b==1", "nvidia-x==1", "c-d==4"]
    asked = []

    def resolve(*options):
        asked.append(options)
        if options[0] == "--constraint":
            assert Path(options[1]).read_text().splitlines() == everything
            return ["a==2", "nvidia-x==1"]
        return everything

    monkeypatch.setattr(pins_tool, "resolve", resolve)
    monkeypatch.setattr(pins_tool, "ROOT", tmp_path)
    pins_tool.main()
    assert asked[0] == ("--extra", "dev") and len(asked) == 2
    assert pip_lines(tmp_path / "requirements.txt") == everything[:2]
    assert pip_lines(tmp_path / "requirements-dev.txt") == ["-r requirements.txt", "b==1", "c-d==4"]
    assert "2 pins, requirements-dev.txt: 2 more" in capsys.readouterr().out


def test_pins_that_cannot_be_found_change_nothing(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\nrequires-python = ">=9"\n')
    monkeypatch.setattr(pins_tool, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="No file was changed"):
        pins_tool.main()
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("line", LINES + DEV)
def test_every_requirement_is_an_exact_pin(line):
    pin = Requirement(line)
    (specifier,) = pin.specifier
    assert specifier.operator == "==" and not specifier.version.endswith("*")
    assert pin.url is None and not pin.extras
    assert Version(specifier.version).local is None, "a pin with a local version (+cpu) fits one build of it only"


def test_torch_is_pinned_without_cuda_companions():
    found = pins(LINES)
    assert str(found["torch"]) == "2.13.0"
    assert not [name for name in found if re.match("nvidia-|cuda-|triton|pytorch-", name)]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_pins_meet_the_ranges_of_pyproject_everywhere(system, python):
    environment = dict(SYSTEMS[system], python_full_version=python, python_version=".".join(python.split(".")[:2]))
    learners = pins(LINES, **environment)
    for wanted in WANTED + WANTED_DEV:
        found = learners if wanted in WANTED else learners | pins(DEV, **environment)
        version = found.get(canonicalize_name(wanted.name))
        assert version, f"{wanted.name} is in pyproject.toml but not in its list of pins: run `make pins`"
        assert wanted.specifier.contains(version), (
            f"{wanted.name}=={version} is outside {wanted.specifier}: `make pins`"
        )


def test_installed_versions_are_the_pins():
    """Where this fails, the environment is not the one that `make test` makes."""
    differing = {
        name: (metadata.version(name), str(pin))
        for name, pin in pins(LINES + DEV).items()
        if Version(metadata.version(name)).public != str(pin)
    }
    assert not differing, f"{{package: (installed, pinned)}} = {differing}; run `make test`"


def test_installed_packages_agree_with_each_other():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_conda_lines_are_valid_and_its_python_fits():
    assert CONDA["name"] == PROJECT["name"] and CONDA["channels"]
    specs = {
        line.split("=")[0]: MatchSpec(line, strict=True) for line in CONDA["dependencies"] if isinstance(line, str)
    }
    assert {"python", "pip"} <= set(specs), "conda warns where pip is used without being listed"
    python = str(specs["python"].version).removesuffix(".*")
    assert any(tested.startswith(f"{python}.") for tested in PYTHONS), f"one tested minor version, not {python}"
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


def test_conda_leads_to_the_same_pins():
    """Conda hands these lines to pip in the folder of environment.yml, so they name the pins and the course and no more."""
    (pip,) = (item["pip"] for item in CONDA["dependencies"] if isinstance(item, dict))
    lines = []
    for line in pip:
        option, _, value = line.partition(" ")
        if option == "-r":
            lines += pip_lines(ROOT / value)
        else:
            assert line == "-e .", f"{line!r} is neither the pins nor the course itself"
    assert "-e ." in pip
    for system, python in itertools.product(SYSTEMS.values(), PYTHONS):
        environment = dict(system, python_full_version=python)
        assert pins(lines, **environment) == pins(LINES, **environment)
    # What conda installs itself must not be a package that the pins decide
    assert not {line.split("=")[0] for line in CONDA["dependencies"] if isinstance(line, str)} & set(pins(LINES))


def test_readme_and_conda_file_name_the_same_steps():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for step in ("make setup", "make lab", "pip install -r requirements.txt", "conda env create -f environment.yml"):
        assert step in readme, f"the README does not tell {step!r}"
