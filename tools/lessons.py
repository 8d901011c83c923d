"""Execute the lessons: `python -m tools.lessons run` into build/, `… outputs` refreshes the committed outputs too.

python -m tools.lessons run [04 …] [--profile cpu]
python -m tools.lessons laptop [04 …]    # on a processor made as slow as an ordinary laptop's; writes that column of the README
"""

import argparse
import asyncio
import base64
import contextlib
import copy
import hashlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from utils import ROOT, console, files, plots

NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
# What never belongs in a committed notebook
STRIP = (
    "metadata.widgets metadata.language_info.version cell.metadata.execution cell.metadata.colab cell.metadata.outputId"
)

# What most laptops lack, taken away: products in bf16 and vectors longer than AVX2's
LAPTOP = {
    "COURSE_PRECISION": "fp32",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def lessons(names=()) -> list[Path]:
    """The notebooks in order, or those whose names start with one of `names`; hidden files are none."""
    found = sorted(p for p in NOTEBOOKS.glob("[!.]*.ipynb") if not names or p.name.startswith(tuple(names)))
    if not found:
        raise SystemExit(f"No lesson starts with {', '.join(names)}; there are {', '.join(p.stem for p in lessons())}.")
    return found


def number(path) -> str:
    """What a lesson goes by, from its file's name: "04", or "A" for an appendix."""
    return Path(path).name.partition("_")[0]


def tags(cell) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def code_hash(notebook) -> str:
    """A hash of the lesson's own code cells (the set-up cell, the same everywhere, left out)."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "setup" not in tags(cell)]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()[:16]


@dataclass
class Result:
    """What one execution gave: the executed notebook, seconds in all, of the slowest cell and of each section, the error if any."""

    notebook: object
    seconds: float
    slowest: float
    slowest_cell: str
    error: str = ""
    sections: dict[str, float] = field(default_factory=dict)


def execute(notebook, profile: str, folder=NOTEBOOKS, kernel="python3", **env) -> Result:
    """Run a notebook (not in place) with COURSE_PROFILE=profile and claims enforced; further `env` for its kernel."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class Client(NotebookClient):
        """nbclient's own answer to Ctrl-C takes the kernel away and then trips over it; here the run is cancelled."""

        stopped = False

        async def async_start_new_kernel(self, **options):
            def stop():
                self.stopped, self.shutdown_kernel = True, "immediate"
                task.cancel()

            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            with contextlib.suppress(RuntimeError):  # Windows has no such handlers, nor has a thread
                loop.add_signal_handler(signal.SIGINT, stop)
                loop.add_signal_handler(signal.SIGTERM, stop)
            await super().async_start_new_kernel(**options)

    notebook = copy.deepcopy(notebook)
    began, times = {}, {}
    client = Client(
        notebook,
        timeout=1200,
        kernel_name=kernel,
        extra_arguments=["--IPKernelApp.log_level=40"],  # it warns of TCP at every start
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, cell_index: began.update({cell_index: time.time()}),
        on_cell_executed=lambda cell, cell_index, execute_reply: times.update(
            {cell_index: time.time() - began[cell_index]}
        ),
    )
    start, error = time.time(), ""
    # so that a course being tested inside another course's environment imports itself
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    startup = str(ROOT / "tools" / "deprecations.py")
    settings = {"COURSE_PROFILE": profile, "COURSE_ENFORCE": "1", "PYTHONPATH": path, "PYTHONSTARTUP": startup, **env}
    try:
        client.execute(env={**os.environ, **settings})
    except (Exception, asyncio.CancelledError) as failure:
        if client.stopped:
            raise KeyboardInterrupt from None
        if isinstance(failure, DeadKernelError):
            error = "The kernel died: the memory was full, or it was ended from outside."
        else:
            error = str(failure) if isinstance(failure, CellExecutionError) else f"{type(failure).__name__}: {failure}"
    worst = max(times, key=times.get, default=0)
    name, sections = notebook.cells[worst].get("id", ""), by_section(notebook, times)
    return Result(notebook, time.time() - start, times.get(worst, 0.0), name, error, sections)


def by_section(notebook, times: dict[int, float]) -> dict[str, float]:
    """{"1": seconds} for each section, from the seconds of cells by their index; what stands before the first is left out."""
    seconds, section = {}, ""
    for index, cell in enumerate(notebook.cells):
        heading = cell.cell_type == "markdown" and re.match(r"## (\d+) · ", cell.source)
        section = heading[1] if heading else section
        if section:
            seconds[section] = seconds.get(section, 0.0) + times.get(index, 0.0)
    return seconds


def clean(notebook, seconds: float):
    """Ready an executed notebook for a commit: its code's hash and minutes; no widgets, no progress bars, nothing random."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.get("metadata", {}).pop(
                    "static", False
                ):  # plots.box: its text stands for it where nothing runs
                    output.data.pop(plots.WIDGET)
            cell.outputs = [
                output
                for output in cell.outputs
                if plots.WIDGET not in output.get("data", {})
                and not (output.get("name") == "stderr" and re.search(r"\d+%\|", output.get("text", "")))
            ]
            for output in cell.outputs:
                for kind in {"text/html", "text/plain"} & set(output.get("data", {})):
                    output.data[kind] = steady(output.data[kind], cell.id)
    notebook.metadata["course"] = {"code": code_hash(notebook)}
    notebook.cells[0].source = between(notebook.cells[0].source, "minutes", minutes(seconds))
    return notebook


def steady(text: str, name: str) -> str:
    """An output without what is drawn anew in every run: the ids in pandas' styled tables, addresses in memory."""
    for i, drawn in enumerate(dict.fromkeys(re.findall(r"\bT_[0-9a-f]{5}(?![0-9a-f])", text))):
        text = text.replace(drawn, f"T_{name}_{i}")
    return re.sub(r" at 0x[0-9a-f]{6,}", "", text)


def between(text: str, mark: str, content: str) -> str:
    """`text` with `content` between `<!-- mark -->` (or `<!-- mark:04 -->`) and `<!-- /mark -->`. ValueError where they are not."""
    pattern = rf"(<!-- {mark} -->).*?(<!-- /{mark.partition(':')[0]} -->)"
    if not re.search(pattern, text, re.S):
        raise ValueError(f"There is no place marked <!-- {mark} --> in the text that begins {text[:40]!r}.")
    return re.sub(pattern, lambda match: match[1] + content + match[2], text, count=1, flags=re.S)


def minutes(seconds: float) -> str:
    return f"under {math.ceil(seconds / 60)}"


def stamp_teaching(text: str, name: str, result: Result) -> str:
    """docs/teaching.md with the machine's time for a lesson and its sections, rounded up to 10 s, 30 s or whole minutes."""
    text = between(text, f"minutes:{name}", minutes(result.seconds))
    for section, seconds in result.sections.items():
        told = next((f"{limit} s" for limit in (10, 30) if seconds <= limit), f"{math.ceil(seconds / 60)} min")
        text = between(text, f"machine:{name}.{section}", told)
    return text


def save(notebook, path: Path, was=...) -> None:
    """Write a lesson without what never belongs in one. files.Refused where it is no longer the text `was`."""
    command = [sys.executable, "-m", "nbstripout", "--keep-output", "--keep-id", "--extra-keys", STRIP]
    text = nbformat.writes(notebook)
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    files.place_file(path, done.stdout, was=was)


def save_readme_figure(notebook) -> None:
    """The README shows the figure of lesson 04's cell `four-ways`."""
    cell = next(cell for cell in notebook.cells if cell.id == "four-ways")
    (image,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    files.place_file(ROOT / "docs" / "figure.png", base64.b64decode(image))


def refresh(result: Result, path: Path, was: str) -> None:
    """Write what a lesson's execution gave into the lesson, which then held the text `was`, the README and docs/teaching.md."""
    name = number(path)
    save(clean(result.notebook, result.seconds), path, was)
    for document, stamped in (
        (ROOT / "README.md", lambda text: between(text, f"minutes:{name}", minutes(result.seconds))),
        (ROOT / "docs" / "teaching.md", lambda text: stamp_teaching(text, name, result)),
    ):
        before = document.read_text(encoding="utf-8")
        files.place_file(document, stamped(before), was=before)
    if name == "04":
        save_readme_figure(result.notebook)


def stamp_laptop(result: Result, path: Path) -> None:
    """Write a lesson's time on a laptop into the README's map."""
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    files.place_file(readme, between(before, f"laptop:{number(path)}", minutes(result.seconds)), was=before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "outputs", "laptop"))
    parser.add_argument("names", nargs="*", help="lesson numbers, or A; all where none is given")
    parser.add_argument("--profile", default="cpu")
    options = parser.parse_args()
    if options.what != "run" and options.profile != "cpu":
        parser.error(f"`{options.what}` is for the cpu profile")
    from utils import profiles

    profile = profiles.get(options.profile)
    laptop = options.what == "laptop"
    folder = BUILD / ("laptop" if laptop else profile.name)
    rows, failed = [], False
    for path in lessons(options.names):
        print(f"{path.stem} …", flush=True)
        env = {"COURSE_BUILD": str(BUILD), **({"HF_HUB_OFFLINE": "1"} if profile.offline else {})}
        env |= LAPTOP if laptop else {}
        text = path.read_text(encoding="utf-8")
        try:
            result = execute(nbformat.reads(text, as_version=4), profile.name, **env)
        except KeyboardInterrupt:
            print(f"Stopped in {path.stem}; nothing of it was kept, the lessons before it are done.", file=sys.stderr)
            return 130
        row = f"{path.stem:<32}{result.seconds:>6.0f} s   slowest cell {result.slowest:>5.0f} s ({result.slowest_cell})"
        rows.append(row + ("   FAILED" if result.error else ""))
        print(rows[-1], flush=True)
        if result.error:
            failed = True
            print(result.error, file=sys.stderr)
        try:
            save(result.notebook, folder / path.name)
            if options.what == "outputs" and not result.error:
                refresh(result, path, text)
            if laptop and not result.error:
                stamp_laptop(result, path)
        except files.Refused as error:  # an edit saved meanwhile is never overwritten
            failed = True
            print(error, file=sys.stderr)
    print("\n" + "\n".join(rows) + f"\n\nThe executed lessons are in {os.path.relpath(folder, ROOT)}/.")
    return int(failed)


if __name__ == "__main__":
    console.run(main)
