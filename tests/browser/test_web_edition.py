"""The web edition in a browser, on a phone and on a desk, by day and by night. It is built once, and once more with an address."""

import functools
import http.server
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import expect

from tools import lessons, site, stamp

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
NAMES = [path.stem for path in lessons.lessons()]
LESSON = next(f"notebooks/{name}.html" for name in NAMES if name.startswith("01"))
WORDY = next(f"notebooks/{name}.html" for name in NAMES if name.startswith("04"))  # it links words that others explain
SHOWN = ("index.html", LESSON, "docs/faq.html", "docs/migration.html")  # kept as screenshots, to be looked at
# WCAG's contrast of each text that is on the page with what is behind it; gives those below 4.5 (3 for large letters).
PALE = """() => {
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = parse(getComputedStyle(element).backgroundColor);
            if (colour.length == 3 || colour[3] > 0.5) return colour;
        }
        return [255, 255, 255];
    };
    const pale = new Set(), walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const element = walk.currentNode.parentElement, style = getComputedStyle(element);
        if (!walk.currentNode.data.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
        if (element.closest('.headerlink, .onlyprint, script, mjx-assistive-mml')) continue;
        const [low, high] = [light(parse(style.color)), light(behind(element))].sort((a, b) => a - b);
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.6 && style.fontWeight >= 600);
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < (large ? 3 : 4.5))
            pale.add(`${contrast.toFixed(1)} ${element.tagName}.${element.className}: ${walk.currentNode.data.slice(0, 40)}`);
    }
    return [...pale];
}"""


@contextmanager
def served(folder):
    """The address of a server of `folder` on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """The site without and with an address, built side by side: {name: folder}. Whatever Sphinx warns of would end it here."""
    folder = tmp_path_factory.mktemp("built")
    slugs = {"plain": "", "stamped": "ann/course"}
    with ThreadPoolExecutor() as pool:
        seconds = list(pool.map(lambda name: site.build(out=folder / name, slug=slugs[name]), slugs))
    assert max(seconds) < 60
    return {name: folder / name for name in slugs}


@pytest.fixture(scope="module")
def out(sites):
    return sites["plain"]


@pytest.fixture(scope="module")
def url(out):
    with served(out) as address:
        yield address


@pytest.fixture
def visit(browser, watched, url):
    """`visit(page name, …)` opens a page in a context of its own; at the end nothing may have gone wrong on any of them."""
    contexts, watches, failed = [], [], []

    def open_page(name, base=url, viewport=DESK, **options):
        contexts.append(browser.new_context(viewport=viewport, reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        watches.append(watched(page))
        page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
        page.goto(base + name)
        page.wait_for_load_state("networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not failed
    for watch in watches:
        assert not watch.errors and not watch.outside
        assert not [line for line in watch.console if line.startswith(("error", "warning"))]


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_page_on_a_phone(out, url, visit, shots):
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*.html")) if "_static" not in path.parts]
    assert {*SHOWN, *(f"notebooks/{name}.html" for name in NAMES), "docs/troubleshooting.html"} <= set(names)
    page, links = visit("index.html", viewport=PHONE), set()
    for name in names:
        page.goto(url + name)
        page.evaluate("window.MathJax?.startup.promise")
        assert fits(page), f"{name} is wider than a phone"
        assert page.title() and page.locator("main h1:visible").count() == 1
        unnamed = page.evaluate(
            "[...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src)"
        )
        assert not unnamed
        links |= {(name, link) for link in page.evaluate("[...document.links].map(link => link.href)")}
        if name in SHOWN:
            page.screenshot(path=shots / f"site-{name.replace('/', '-')}-phone.png")
    texts = {name: (out / name).read_text(encoding="utf-8") for name in names}
    for name, link in links:
        parts = urlsplit(link)
        if parts.hostname == "127.0.0.1":
            target = unquote(parts.path.lstrip("/"))
            assert (out / target).is_file(), f"{name} links to {link}"
            assert not parts.fragment or f'id="{unquote(parts.fragment)}"' in texts[target], f"{name} links to {link}"
        else:
            assert parts.scheme == "https" and "." in parts.hostname, f"{name} links to {link}"


def test_formulas_are_typeset_with_the_fonts_beside_the_page(visit):
    page = visit(LESSON)
    page.evaluate("MathJax.startup.promise")
    written = page.locator("article .math").count()
    assert written > 20 and page.locator("article .math mjx-container").count() == written
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate("[...document.fonts].some(font => font.family.startsWith('MJX') && font.status == 'loaded')")


@pytest.mark.parametrize("script", [True, False], ids=["with JavaScript", "without"])
def test_solutions_open_on_a_click(visit, script):
    page = visit(LESSON, viewport=PHONE, java_script_enabled=script)
    expect(page.locator("h1:visible")).to_have_text(re.compile("01 · "))
    solutions = page.locator(".exercise .tag_solution")
    assert solutions.count() == page.locator(".exercise").count() >= 3
    for solution in solutions.all():
        code = solution.locator(".cell_input")
        expect(code).to_be_hidden()
        expect(solution.locator(".cell_output")).to_be_hidden()
        solution.locator("summary").click()
        expect(code).to_be_visible()
    for cell in page.locator(".tag_check, .tag_setup").all():
        expect(cell.locator(".cell_input")).to_be_hidden()


@pytest.mark.parametrize("script", [True, False], ids=["with JavaScript", "without"])
def test_a_drawing_is_seen_and_its_code_opens_on_a_click(visit, script):
    page = visit(LESSON, viewport=PHONE, java_script_enabled=script)
    drawings = page.locator(".tag_drawing")
    assert drawings.count() >= 3
    for drawing in drawings.all():
        expect(drawing.locator("img").first).to_be_visible()
        expect(drawing.locator(".cell_input")).to_be_hidden()
        drawing.locator("summary").click()
        expect(drawing.locator(".cell_input")).to_be_visible()


def test_a_word_leads_to_the_glossary(visit):
    page = visit(WORDY)
    word = page.locator("article a[href*='docs/glossary.html#term-']").first
    word.click()
    page.wait_for_url("**/docs/glossary.html#term-*")
    expect(page.locator(":target")).to_be_in_viewport()


def test_search_finds_the_lesson(visit):
    page = visit("index.html")
    page.locator(".bd-sidebar-primary .search-button-field").click()
    page.keyboard.type("rank")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=rank")
    results = page.locator("#search-results li a")
    expect(page.locator("#search-results .search-summary")).to_contain_text("found")
    found = results.filter(has_text=re.compile("^01 · ")).first
    expect(found).to_be_visible()
    found.click()
    page.wait_for_url(f"**/{LESSON}*")
    page.goto(page.url.split("notebooks/")[0] + "search.html?q=what+does+lora_alpha")
    expect(page.locator("#search-results li a[href*='docs/faq.html']").first).to_be_visible()


@pytest.mark.parametrize("name", SHOWN)
def test_day_and_night(visit, shots, name):
    page, colours = visit(name, color_scheme="light"), {}
    for mode in ("light", "dark"):
        page.locator(".bd-header-article .theme-switch-button").click()
        page.locator(f".bd-header-article .theme-change-button[data-mode={mode}]").click()
        expect(page.locator("html")).to_have_attribute("data-theme", mode)
        page.mouse.move(0, 0)
        colours[mode] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert not page.evaluate(PALE)
        assert fits(page)
        page.screenshot(path=shots / f"site-{name.replace('/', '-')}-{mode}.png")
    page.add_style_tag(content="article p { color: #777 !important }")
    assert page.evaluate(PALE)  # it sees what is too pale
    assert colours["light"] != colours["dark"]
    for image in page.locator("article img").all():  # drawn on white, in black
        assert image.evaluate("image => getComputedStyle(image).backgroundColor") == "rgb(255, 255, 255)"


def test_a_wide_table_scrolls_in_itself(visit):
    page = visit("docs/migration.html", viewport=PHONE)
    table = page.locator("article table").locator("xpath=..")
    assert table.evaluate("box => box.scrollWidth > box.clientWidth + 100")
    assert table.evaluate("box => getComputedStyle(box).overflowX") == "auto"
    assert fits(page)


def test_colab_buttons_with_an_address_and_none_without(sites, visit):
    for name, folder in sites.items():
        for path in folder.rglob("*.html"):
            found = re.findall(r'<a class="button colab[^>]*href="([^"]*)"', path.read_text(encoding="utf-8"))
            wanted = [stamp.colab_url("ann/course", f"{path.stem}.ipynb")] if path.stem in NAMES else []
            assert found == (wanted if name == "stamped" else []), path
    with served(sites["stamped"]) as base:
        page = visit(LESSON, base=base, viewport=PHONE)
        expect(page.locator("a.colab")).to_be_visible()
        assert fits(page)
        page = visit("index.html", base=base)
        expect(page.locator("article a[href$='/blob/main/LICENSE']")).to_have_count(1)
    assert not [p for p in sites["plain"].rglob("*.html") if "colab.research" in p.read_text(encoding="utf-8")]
