"""What the drawings of diagrams.py are made of: a page in the course's style, with texts, boxes, arrows and numbers as colours."""

import reprlib
from numbers import Integral

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.path import Path

from utils import plots

WIDTH = 5.2  # inches for 100 units: on the 390 pixels of a phone the small writing is still 9 high
LARGE, SMALL = 11, 9.5  # points
PEN = RendererAgg(1, 1, plots.STYLE["figure.dpi"])
FROZEN, TRAINED = plots.TINT, plots.ORANGE


class Page:
    """A drawing 100 units wide; y grows downwards, as a page is read."""

    def __init__(self):
        self.figure, self.axes = plots.subplots()
        self.axes.set(xlim=(0, 100), position=(0, 0, 1, 1))
        self.axes.axis("off")

    def done(self, height: float, alt: str):
        """(figure, alt), once it is known how high the drawing is."""
        self.figure.set_size_inches(WIDTH, WIDTH * height / 100)
        self.axes.set_ylim(height, 0)
        return self.figure, alt

    def text(self, x, y, text, size=SMALL, room=98.0, bold=False, ha="center", va="center", **options) -> None:
        """Write `text` around (x, y), or as much of it as has room."""
        options["weight"] = "bold" if bold else "normal"
        # A dollar in a text is a dollar, not the beginning of a formula.
        self.axes.text(x, y, cut(text, room, size, bold), size=size, ha=ha, va=va, parse_math=False, **options)

    def box(self, x, y, width, height, text="", fill="white", bold=False, size=SMALL, room=None, **edge) -> None:
        """A rectangle from its upper left corner, with a text inside that can be read on `fill`."""
        edge = {"edgecolor": plots.GREY, "linewidth": 0.9, **edge}
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, **edge))
        if text:
            self.text(x + width / 2, y + height / 2, text, size, room or width - 1, bold, color=ink(fill))

    def dot(self, x, y, radius=1.0, fill=plots.BLUE) -> None:
        self.axes.add_patch(Circle((x, y), radius, facecolor=fill, edgecolor=plots.BLUE, linewidth=1.5, zorder=3))

    def arrow(self, *points, style="-|>", **line) -> None:
        """An arrow through `points`; a line with style "-"."""
        line = {"color": plots.GREY, "linewidth": 1.4, "mutation_scale": 10, "joinstyle": "miter", **line}
        self.axes.add_patch(FancyArrowPatch(path=Path(points), arrowstyle=style, **line))

    def cells(self, x, y, values, width, height, most=None, form="") -> None:
        """Numbers as colours, deeper the larger, blue above zero, orange below; their signs are written in, or they in `form`."""
        values = np.atleast_2d(values)
        most = most or np.abs(values).max() or 1
        for (i, j), value in np.ndenumerate(values):
            share = min(1, abs(value) / most)
            sign = "" if share < 0.02 else "−" if value < 0 else "+"
            fill = mixed(plots.RED if value < 0 else plots.BLUE, share)
            text = number(value, form) if form else sign
            self.box(x + j * width, y + i * height, width, height, text, fill, room=width)

    def lora(self, x, y, width, height, thin) -> None:
        """B, upright, and A, lying, as they span a matrix of width x height."""
        self.box(x, y, thin, height, fill=TRAINED, linewidth=0.3)
        self.box(x + thin + 0.6, y, width, thin, fill=TRAINED, linewidth=0.3)


def wide(text: str, size: float = SMALL, bold: bool = False) -> float:
    """How wide a line of text is, in units: as it is drawn, since a font's own measures are up to 8 % narrower."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    pixels = PEN.get_text_width_height_descent(text, font, ismath=False)[0]
    return pixels / plots.STYLE["figure.dpi"] / WIDTH * 100


def cut(text: str, room: float, size: float = SMALL, bold: bool = False) -> str:
    """`text`, or its beginning and an ellipsis if it is wider than `room`."""
    short = text[:200]  # no page has room for more
    while short and wide(short + "…" * (short != text), size, bold) > room:
        short = short[:-1]
    return short + "…" * (short != text)


def mixed(colour, share: float) -> tuple:
    """`colour` on white, the deeper the larger `share` is, from 0 to 1; never so deep that black is hard to read on it."""
    return tuple(1 - 0.65 * share * (1 - c) for c in to_rgb(colour))


def ink(fill) -> str:
    """Black or white, whichever is easier to read on `fill`: on any colour one of them has a contrast of 4.5."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(fill)]
    return "black" if np.dot((0.2126, 0.7152, 0.0722), linear) > 0.179 else "white"


def thin(r: int, unit: float, least: float) -> float:
    """How thick to draw r numbers of `unit` each: to scale, but never so thin that nobody would see them."""
    return float(np.hypot(r * unit, least))


def number(value, form: str = ".3g") -> str:
    """A number with a real minus and no zero below zero."""
    text = f"{value:{form}}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def size(count: float) -> str:
    """Bytes in words; 1 GB = 10**9."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e5 else (1e3, "kB")
    return f"{count / unit:.{int(count < 10 * unit)}f} {name}"


def many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def shown(token) -> str:
    """A token whose spaces and line ends can be seen, be it decoded or as tokenisers store it."""
    return str(token).translate(str.maketrans(dict.fromkeys(" Ġ▁", "␣") | dict.fromkeys("\nĊ", "↵") | {"\t": "→"}))


def said(tokens) -> str:
    """The text that shown tokens make."""
    return "".join(tokens).replace("␣", " ").replace("↵", " ").strip()


# --- what they are given ---


def need(holds, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


def whole(**numbers) -> None:
    for name, given in numbers.items():
        good = isinstance(given, Integral) and not isinstance(given, bool) and given >= 1
        need(good, f"{name}={given!r}, but it must be a whole number from 1.")


def strings(given) -> list[str]:
    """Tokens or words, spaces and line ends to be seen."""
    need(not isinstance(given, str) and len(given), f"A list of tokens or words is needed, not {reprlib.repr(given)}.")
    return [shown(token) for token in given]


def pairs(name: str, given) -> dict[str, float]:
    try:
        pairs = {str(key): float(value) for key, value in dict(given).items()}
    except (TypeError, ValueError):
        pairs = {}
    need(pairs and np.isfinite([*pairs.values()]).all(), f"{name} must be {{name: number}}, not {reprlib.repr(given)}.")
    return pairs


def array(name: str, given, sides: int):
    """`given` as an array of finite numbers with so many sides, none of them empty."""
    try:
        array = np.asarray(given, dtype=float)
    except (TypeError, ValueError, RuntimeError):  # the last is torch's, of a tensor that still has its gradient
        array = np.array([])
    what = {1: "a list of numbers", 2: "a table of numbers with rows of one length"}[sides]
    need(array.ndim == sides and array.size, f"{name} must be {what}, not {reprlib.repr(given)}.")
    need(np.isfinite(array).all(), f"{name} has numbers that are not finite.")
    return array
