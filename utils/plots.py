"""One look for all figures, each shown with alternative text and a caption; a slider, a box to type into, tables."""

import base64
import html
import io
import os
import re
import sys
from numbers import Number

# Okabe & Ito's colours, told apart by colour-blind readers; grey for what is only reference.
BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#6E6E6E"
TINT = "#DCEBF5"  # a ground for black writing
WIDGET = "application/vnd.jupyter.widget-view+json"
STYLE = {
    "figure.figsize": (7.2, 3.4),
    "figure.dpi": 110,
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "image.cmap": "cividis",
}


def subplots(rows: int = 1, columns: int = 1, **options):
    """matplotlib's `subplots` in the course's style."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    # Set for good: titles, legends and colour maps ask for their style when they are drawn, after this call.
    plt.rcParams.update({**STYLE, "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, RED])})
    return plt.subplots(rows, columns, layout="constrained", **options)


def _png(figure) -> bytes:
    import matplotlib.pyplot as plt

    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return png.getvalue()


def show(figure, alt: str, caption: str = "") -> None:
    """Display `figure` with alternative text (what it shows, for those who cannot see it) and a caption, and close it."""
    from IPython.display import Markdown, display

    if not alt.strip():
        raise ValueError("A figure needs alternative text: one or two sentences that say what it shows.")
    image = base64.b64encode(_png(figure)).decode()
    display({"image/png": image, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
    if caption:
        display(Markdown(f"*{caption}*"))


def slider(draw, name: str, value: int, low: int, high: int, alt: str):
    """A slider `name` above the figure that `draw(value)` returns, drawn anew whenever it moves; the arrow keys work too.

    alt: what the figure shows, with {} where the value stands.
    """
    from ipywidgets import HTML, IntSlider, VBox

    def picture(value: int) -> str:
        image = base64.b64encode(_png(draw(value))).decode()
        text = html.escape(alt.format(value))
        return f'<img style="max-width: 100%" alt="{text}" src="data:image/png;base64,{image}">'

    control = IntSlider(value, low, high, description=name, continuous_update=False)
    shown = HTML(picture(value))
    control.observe(lambda change: setattr(shown, "value", picture(change["new"])), "value")
    return VBox([control, shown])


def box(answer, name: str, value: str) -> None:
    """A box `name` to type into, and below it what `answer(text)` says of it: of `value` at first, anew after Enter.

    answer: gives a string, or {name: value} for a small table; what it raises is shown as a sentence (with COURSE_ENFORCE=1 the
    first answer's error is raised). Pages on which nothing runs show `value` and its answer as plain text.
    """
    from IPython.display import display
    from ipywidgets import HTML, Text, VBox

    wide = {"width": "100%", "max_width": "44em"}
    control = Text(
        value, description=name, placeholder="Type here, then press Enter", continuous_update=False, layout=wide
    )
    control.style.description_width = "initial"
    first = _answer(answer, value, enforce=os.environ.get("COURSE_ENFORCE") == "1")
    shown = HTML(_html(first))

    def reply(change) -> None:
        shown.value = _html("Working on it …")
        shown.value = _html(_answer(answer, change["new"]))

    control.observe(reply, "value")
    view = {"model_id": VBox([control, shown]).model_id, "version_major": 2, "version_minor": 0}
    text = f"{name}: {value}\n{_plain(first)}"
    display({WIDGET: view, "text/plain": text}, raw=True, metadata={"static": True})


def _answer(answer, text: str, enforce: bool = False):
    if not text.strip():
        return "The box is empty: type a text into it, then press Enter."
    try:
        return answer(text.strip())
    except Exception as error:  # whatever a reader types, there is no traceback
        if enforce:
            raise
        return f"There is no answer to this text ({type(error).__name__}: {' '.join(str(error).split())}). Try another one."


def _plain(found) -> str:
    if not isinstance(found, dict):
        return str(found)
    width = max(map(len, map(str, found)), default=0)
    return "\n".join(f"{key!s:<{width}}  {value}" for key, value in found.items())


def _html(found) -> str:
    """For screen readers a status, which is read out when it changes."""
    if isinstance(found, dict):
        cells = (f"<th align='left'>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td>" for k, v in found.items())
        shown = f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
    else:
        shown = html.escape(str(found))
    return f'<div role="status" style="white-space: pre-wrap; line-height: 1.5">{shown}</div>'


def align_tables() -> None:
    """From now on pandas' tables are shown with alignment in their cells: of a notebook that was not run here, JupyterLab
    drops style sheets and puts all text at the right. Numbers stand at the right, all else at the left, headings likewise.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell:
        page = shell.display_formatter.formatters["text/html"]
        page.for_type_by_name("pandas.io.formats.style", "Styler", aligned)
        for module in ("pandas", "pandas.core.frame"):  # from pandas 3 on, and before
            page.for_type_by_name(module, "DataFrame", _aligned_frame)


def aligned(styler) -> str:
    """The HTML of a pandas `Styler`, with alignment in each cell."""
    columns = (styler.data.iloc[:, i] for i in range(styler.data.shape[1]))
    numbers = [all(isinstance(value, Number) for value in column) for column in columns]

    def cell(match) -> str:
        column = re.search(r"\bcol(\d+)", match[2])
        side = "right" if column and numbers[int(column[1])] else "left"
        return f'<{match[1]} style="text-align: {side}; vertical-align: top"{match[2]}>'

    return re.sub(r'<(t[hd])\b((?: \w+="[^"]*")*) ?>', cell, styler.to_html())


def _aligned_frame(frame) -> str:
    import pandas as pd

    if len(frame) > pd.options.display.max_rows or frame.shape[1] > pd.options.display.max_columns:
        return frame._repr_html_()  # shortened
    names = frame.style.format_index(escape="html").format_index(escape="html", axis="columns")
    return aligned(names.format(escape="html"))
