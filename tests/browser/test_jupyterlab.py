"""The lessons in JupyterLab, as a learner uses them: opened in a browser, run from the menu, answered by keyboard.

JupyterLab serves copies; its settings, and all that the kernels write, go to temporary folders too.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from answers import ANSWERS
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import expect

from tools import lessons
from utils import ROOT, plots

PATIENCE = 240_000  # ms; continuous integration is slow and shared
# The start-up picture has gone, and the kernel of the notebook in front waits for work
IDLE = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return !document.querySelector('#jupyterlab-splash') && panel?.sessionContext?.session?.kernel?.status === 'idle';
}"""
# … and the code cells `ids` have run once more than `before` says, or one has failed: the rest would never run then
RAN = f"""({{ids, before}}) => {{
    if (!({IDLE})()) return false;
    const cells = jupyterapp.shell.currentWidget.content.widgets.filter(w => ids.includes(w.model.sharedModel.id));
    const failed = w => w.model.outputs.toJSON().some(output => output.output_type === 'error');
    return cells.some(failed) || cells.every(w => w.model.executionCount > before);
}}"""
# What looks wrong on the page in the cells `ids`, each scrolled to its turn; the cells `away` must be folded
BLEMISHES = r"""async ({ids, away}) => {
    const notebook = jupyterapp.shell.currentWidget.content, found = [];
    for (const [index, {node, model}] of notebook.widgets.entries()) {
        const id = model.sharedModel.id, all = selector => [...node.querySelectorAll(selector)];
        if (!ids.includes(id)) continue;
        await notebook.scrollToItem(index, 'start');
        await new Promise(requestAnimationFrame);
        for (const image of all('img')) if (!image.naturalWidth) found.push([id, `no picture at ${image.src}`]);
        for (const shown of all('.jp-RenderedMarkdown')) {
            const prose = shown.cloneNode(true);
            prose.querySelectorAll('code, pre').forEach(code => code.remove());
            if (prose.querySelector('mjx-merror') || /[$\\]/.test(prose.textContent)) found.push([id, 'a formula is not set']);
        }
        const widget = node.innerText.match(/(Error displaying|Loading) widget.*/);
        if (widget) found.push([id, widget[0]]);
        const folded = all('.jp-InputPlaceholder').some(fold => fold.checkVisibility()), end = node.getBoundingClientRect().right;
        if (all('.jp-Placeholder-content').some(fold => fold.getBoundingClientRect().right > end))
            found.push([id, 'its first line is too long to be folded']);
        if (away.includes(id) && !folded) found.push([id, 'it is not folded']);
    }
    return found;
}"""


class Server:
    """A running JupyterLab; `ask` talks to its REST interface."""

    def __init__(self, folder: Path, port: int, token: str):
        self.folder, self.address, self.token = folder, f"http://127.0.0.1:{port}", token

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(f"{self.address}/api/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def stop_kernels(self) -> None:
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")


@contextmanager
def jupyterlab(folder: Path, log: Path):
    """The JupyterLab of this interpreter on the files in `folder`, stopped at the end with all its kernels."""
    (folder / "config" / "labconfig").mkdir(parents=True)
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # they would ask the network
    (folder / "config" / "labconfig" / "page_config.json").write_text(json.dumps(news))
    places = {f"JUPYTER_{kind}_DIR": kind.lower() for kind in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{kind}_DIR": kind.lower() for kind in ("SETTINGS", "WORKSPACES")}
    places |= {"IPYTHONDIR": "ipython", "COURSE_BUILD": "build"}
    env = {"OMP_NUM_THREADS": "1", **os.environ, **{name: str(folder / place) for name, place in places.items()}}
    # as tools.lessons does: a course being tested inside another course's environment imports itself
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env["COURSE_PROFILE"] = "smoke"
    for name in ("COURSE_STRICT", "COURSE_ENFORCE"):  # a learner sees hints and crosses, no tracebacks
        env.pop(name, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server(folder, free.getsockname()[1], secrets.token_hex())
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={server.address.rsplit(':')[-1]}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={server.token}", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"]
    with open(log, "wb") as out:  # in a session of its own, so that Ctrl-C is ours to handle
        process = psutil.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            with suppress(OSError):
                server.ask("status")
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield server
    finally:
        family = [process]
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
            process.terminate()  # it stops its kernels itself; whatever does not heed is killed
        for left in psutil.wait_procs(family, timeout=30)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory, shots):
    folder = tmp_path_factory.mktemp("jupyterlab")
    (folder / "notebooks").mkdir()
    with jupyterlab(folder, shots / "jupyterlab.log") as running:
        yield running


class Desk:
    """A notebook open in JupyterLab, and the hands of a learner."""

    def __init__(self, page, watch, cells):
        self.page, self.watch, self.cells = page, watch, {cell.id: cell for cell in cells}

    def cell(self, cell_id: str):
        """The cell on the page, scrolled to its start."""
        index = list(self.cells).index(cell_id)
        cell = self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}']")
        for patience in (2000, 2000, 5000):  # heights are estimated until a cell is drawn, so a scroll may miss
            self.page.evaluate("i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')", index)
            with suppress(AssertionError):
                expect(cell).to_be_in_viewport(timeout=patience)
                return cell
        raise AssertionError(f"the page cannot be scrolled to {cell_id}")

    def menu(self, item: str, ids) -> None:
        """Click an item of the menu Run, and wait until the code cells among `ids` have run."""
        ids = [i for i in ids if self.cells[i].cell_type == "code" and self.cells[i].source.strip()]
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()
        self.page.wait_for_function(RAN, arg={"ids": ids, "before": 0}, polling=200)

    def run_all(self) -> None:
        self.menu("Run All Cells", self.cells)

    def run_up_to(self, cell_id: str) -> None:
        """Select a cell and run all above it, from the menu."""
        above = list(self.cells)[: list(self.cells).index(cell_id)]
        self.cell(cell_id).locator(".cm-content").click()
        self.menu("Run All Above Selected Cell", above)

    def run(self, cell_id: str):
        """Press Shift+Enter on the selected cell, which must be `cell_id`; wait until it has run. Gives the cell."""
        before = self.now()[cell_id].execution_count or 0
        self.page.keyboard.press("Shift+Enter")
        self.page.wait_for_function(RAN, arg={"ids": [cell_id], "before": before}, polling=200)
        return self.cell(cell_id)

    def answer(self, cell_id: str, answer: str) -> str:
        """Type an answer over what stands in an exercise, run it and the check below it; what the check says on the page."""
        self.cell(cell_id).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.type(answer)
        self.run(cell_id)
        return self.run(f"{cell_id}-check").locator(".jp-OutputArea-output").inner_text().strip()

    def fill(self, field, text: str) -> None:
        """Put `text` in the place of what stands in a box, by the keyboard alone, and press Enter."""
        field.focus()
        for key in ("ControlOrMeta+A", "Delete"):
            self.page.keyboard.press(key)
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def now(self) -> dict:
        """{id: cell} with the outputs and counts that JupyterLab holds now."""
        content = self.page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON()")
        return {cell.id: cell for cell in nbformat.from_dict(content).cells}

    def failures(self) -> list[str]:
        """Tracebacks and missed claims."""
        found = []
        for cell in self.now().values():
            found += [f"{cell.id}: {o.ename}: {o.evalue}" for o in cell.get("outputs", []) if o.output_type == "error"]
            found += [f"{cell.id}: {line}" for line in printed(cell).splitlines() if line.startswith("✗")]
        return found

    def blemishes(self, patience=10) -> list[str]:
        """What looks wrong on the page, and still does `patience` seconds later."""
        away = [cell.id for cell in self.cells.values() if {"solution", "drawing"} & set(lessons.tags(cell))]
        found, deadline = [(cell_id, "") for cell_id in self.cells], time.monotonic() + patience
        while True:  # at first all cells, then those where something was amiss
            ids = [cell_id for cell_id, _ in found]
            found = self.page.evaluate(BLEMISHES, {"ids": ids, "away": away})
            if not found or time.monotonic() > deadline:
                return [f"{cell_id}: {blemish}" for cell_id, blemish in found]
            self.page.wait_for_timeout(200)

    def shoot(self, cell_id: str, path: Path) -> None:
        self.cell(cell_id)
        self.page.screenshot(path=path)


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


@pytest.fixture
def sit_down(server, browser, watched):
    """`sit_down(path)` opens a copy of a notebook in JupyterLab and gives the `Desk`, with a kernel that waits for work."""
    contexts = []

    def open_copy(path: Path) -> Desk:
        shutil.copyfile(path, server.folder / "notebooks" / path.name)
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        desk = Desk(page, watched(page), nbformat.read(path, as_version=4).cells)
        page.goto(f"{server.address}/lab/tree/notebooks/{path.name}?token={server.token}&reset")
        page.wait_for_function(IDLE)
        # or the waits for a run would be over before it began
        assert not any(cell.get("execution_count") for cell in desk.now().values())
        return desk

    yield open_copy
    for context in contexts:
        context.close()
    server.stop_kernels()


@pytest.mark.parametrize("number", ["00", "01", "02"])
def test_a_lesson_runs_from_the_menu(number, sit_down, shots):
    (path,) = lessons.lessons([number])
    desk = sit_down(path)
    desk.shoot(next(iter(desk.cells)), shots / f"{number}-opened.png")
    desk.run_all()
    assert desk.failures() == []
    assert desk.blemishes() == []
    assert desk.watch.errors == [] and desk.watch.outside == []
    cells = desk.now()
    for tag, mark in (("check", "[ ] "), ("solution", "[x] ")):  # the stubs are still there; the solutions came after
        tagged = [cell for cell in cells.values() if tag in lessons.tags(cell)]
        assert tagged and all(printed(cell).startswith(mark) for cell in tagged), [printed(cell) for cell in tagged]
    with_figure = (c.id for c in cells.values() if any("image/png" in o.get("data", {}) for o in c.get("outputs", [])))
    places = {"figure": next(with_figure), "exercise": "ex1", "answer": "ex1-solution", "end": list(cells)[-1]}
    for name, cell_id in places.items():
        desk.shoot(cell_id, shots / f"{number}-{name}.png")


def test_a_learner_moves_the_slider_and_answers_an_exercise(sit_down, shots):
    (path,) = lessons.lessons(["01"])
    desk = sit_down(path)
    desk.run_up_to("ex2")

    slider = desk.cell("photo-figure")
    readout, picture = slider.locator(".widget-readout"), slider.locator(".widget-html img")

    def look(last: str = "") -> tuple[str, bytes]:
        """Wait for a picture from another source than `last`: its source and its bytes."""
        expect(picture).not_to_have_attribute("src", last)
        get = "async i => Array.from(new Uint8Array(await (await fetch(i.src)).arrayBuffer()))"
        return picture.get_attribute("src"), bytes(picture.evaluate(get))

    start, (source, first) = int(readout.inner_text()), look()
    slider.locator(".noUi-handle").focus()
    desk.page.keyboard.press("ArrowRight")
    expect(readout).to_have_text(str(start + 1))
    source, second = look(source)
    assert second != first
    desk.page.screenshot(path=shots / "01-slider.png")
    desk.page.keyboard.press("ArrowLeft")
    expect(readout).to_have_text(str(start))
    assert look(source)[1] == first

    check, answers = desk.cells["ex2-check"].source, ANSWERS[path.stem]["ex2"]
    title, hints = re.search(r'@check\("(.+)"\)', check)[1], set()
    for answer in answers["wrong"]:
        said = desk.answer("ex2", answer)
        hint = said.removeprefix(f"[ ] {title}: ")
        assert hint != said and f'"{hint}"' in check, (answer, said)  # a hint that the lesson's author wrote
        hints.add(hint)
    assert len(hints) > 1
    desk.page.screenshot(path=shots / "01-wrong-answer.png")
    for answer in answers["right"]:
        assert desk.answer("ex2", answer) == f"[x] {title}"
    desk.page.screenshot(path=shots / "01-right-answer.png")
    assert desk.failures() == [] and desk.watch.errors == [] and desk.watch.outside == []


def test_a_reader_types_into_a_box(sit_down, tmp_path, shots):
    source = """from utils import plots

def answer(text):
    return {"letters": len(text), "text": text} if text != "?" else 1 / 0

plots.box(answer, "A review", "Good film.")"""
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [new_code_cell(source, id="box")]
    nbformat.write(notebook, tmp_path / "box.ipynb")
    desk = sit_down(tmp_path / "box.ipynb")
    desk.run_all()
    cell = desk.cell("box")
    field, answer = cell.get_by_label("A review"), cell.get_by_role("status")
    expect(field).to_have_value("Good film.")
    expect(answer).to_contain_text("10")
    expect(cell.locator(".jp-OutputArea-output")).to_have_count(
        1
    )  # the plain text for other pages is not shown as well
    desk.page.screenshot(path=shots / "box.png")
    for typed, said in (
        ("<b>four</b>", "<b>four</b>"),
        ("?", "ZeroDivisionError"),
        ("", "The box is empty"),
        ("ok", "2"),
    ):
        desk.fill(field, typed)
        expect(answer).to_contain_text(said)
    assert desk.failures() == [] and desk.blemishes() == []
    assert desk.watch.errors == [] and desk.watch.outside == []


def test_a_reader_types_a_review_and_both_models_answer(sit_down, shots):
    (path,) = lessons.lessons(["00"])
    desk = sit_down(path)
    desk.run_up_to("count-bytes")
    cell = desk.cell("box-run")
    field, answer = cell.get_by_label("A review"), cell.get_by_role("status")
    expect(answer.locator("tr")).to_have_count(2)  # of the review that stands there at first
    for review, verdict in (
        ("A joy from the first minute to the last.", "praise"),
        ("Dull, loud and far too long.", "pan"),
    ):
        desk.fill(field, review)
        expect(answer.locator("tr", has_text="taught")).to_contain_text(f"{verdict}, ", timeout=PATIENCE)
        expect(answer.locator("tr", has_text="asked")).to_contain_text(re.compile("praise|pan"))
    desk.page.screenshot(path=shots / "00-box.png")
    assert desk.failures() == [] and desk.watch.errors == [] and desk.watch.outside == []


def test_a_drawing_is_seen_and_its_code_is_folded(sit_down, tmp_path, shots):
    source = """# @title Figure · two bars
from utils import plots

figure, ax = plots.subplots()
ax.bar(["small", "large"], [1, 2])
plots.show(figure, "Two bars; the right one is twice as high.", "Two bars.")"""
    fold = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["drawing"]}
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [new_code_cell(source, id="bars", metadata=fold)]
    nbformat.write(notebook, tmp_path / "drawing.ipynb")
    desk = sit_down(tmp_path / "drawing.ipynb")
    desk.run_all()
    cell = desk.cell("bars")
    expect(cell.locator(".jp-OutputArea-output img")).to_be_visible()
    expect(cell.locator(".cm-content")).to_be_hidden()
    expect(cell.locator(".jp-InputPlaceholder")).to_contain_text("Figure · two bars")
    desk.page.screenshot(path=shots / "drawing.png")
    assert desk.failures() == [] and desk.blemishes() == []
    cell.locator(".jp-InputPlaceholder .jp-Placeholder-content").click()
    expect(cell.locator(".cm-content")).to_contain_text("ax.bar")
    assert desk.watch.errors == [] and desk.watch.outside == []


# The text of each cell of the tables on the page, and the side at which it stands
TABLES = r"""() => [...document.querySelectorAll('.jp-RenderedHTML table')].map(table =>
    [...table.querySelectorAll('th, td')].map(cell => [cell.textContent, getComputedStyle(cell).textAlign]))"""


def test_tables_of_a_notebook_that_was_not_run_stand_as_they_should(sit_down, tmp_path, shots):
    frame = pd.DataFrame({"sentence": ["A warm and clever film. " * 9, "Dull."], "people say": [1, -2]})
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for html in (frame.style.hide(axis="index").to_html(), plots.aligned(frame.style.hide(axis="index"))):
        shown = new_output("execute_result", {"text/html": html, "text/plain": "a table"}, execution_count=None)
        notebook.cells.append(new_code_cell("frame", id=f"table-{len(notebook.cells)}", outputs=[shown]))
    nbformat.write(notebook, tmp_path / "unrun.ipynb")
    desk = sit_down(tmp_path / "unrun.ipynb")
    desk.page.screenshot(path=shots / "unrun.png")
    plain, ours = desk.page.evaluate(TABLES)
    assert {side for _, side in plain} == {"right"}, (
        "what JupyterLab does by itself; if it no longer does, drop `aligned`"
    )
    assert {text for text, side in ours if side == "left"} == {"sentence", *frame["sentence"]}
    assert {text for text, side in ours if side == "right"} == {"people say", "1", "-2"}


def test_faults_are_seen(sit_down, tmp_path):
    widget = (
        "{'application/vnd.jupyter.widget-view+json': {'model_id': 'gone', 'version_major': 2, 'version_minor': 0}}"
    )
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [
        new_markdown_cell("$x$ and `$code`", id="good"),
        new_markdown_cell("![gone](gone.png) and an argument that is missing, $\\frac{1}$", id="picture"),
        new_markdown_cell("a brace that is open, $\\frac{1}{2$", id="brace"),
        new_markdown_cell("what does not exist, $\\undefined$", id="unknown"),
        new_code_cell(f"display({widget}, raw=True)", id="widget"),
        new_code_cell("from IPython.display import HTML, Javascript", id="imports"),
        new_code_cell("HTML('<img src=\"http://203.0.113.1/x.png\">')", id="outside"),
        new_code_cell("Javascript('setTimeout(() => { throw Error(\"planted\") })')", id="script"),
        new_code_cell("print('✗ a claim')", id="claim"),
        new_code_cell("answer = 42", id="open", metadata={"tags": ["solution"]}),
        new_code_cell("answer = 42", id="folded", metadata={"tags": ["solution"], "jupyter": {"source_hidden": True}}),
        new_code_cell("#" * 200, id="long", metadata={"jupyter": {"source_hidden": True}}),
        new_code_cell("1 / 0", id="raises"),
        new_code_cell("'never reached'", id="after"),
    ]
    nbformat.write(notebook, tmp_path / "faults.ipynb")
    desk = sit_down(tmp_path / "faults.ipynb")
    desk.run_all()
    assert desk.failures() == ["claim: ✗ a claim", "raises: ZeroDivisionError: division by zero"]
    expect(desk.cell("good").locator("mjx-container")).to_be_visible()  # else any formula might still be on its way
    expect(desk.cell("widget")).to_contain_text("Error displaying widget")
    assert [re.sub("http://127.*", "…", blemish) for blemish in desk.blemishes(patience=1)] == [
        "picture: no picture at …",
        "picture: a formula is not set",
        "brace: a formula is not set",
        "unknown: a formula is not set",
        "widget: Error displaying widget: model not found",
        "outside: no picture at http://203.0.113.1/x.png",
        "open: it is not folded",
        "long: its first line is too long to be folded",
    ]
    assert set(desk.watch.outside) == {"http://203.0.113.1/x.png"}
    assert len(desk.watch.errors) == 1 and "planted" in desk.watch.errors[0]
