"""The concept drawings: true to what they are given, readable on a phone and on a projector, and never without their words."""

import io

import colours
import matplotlib
import numpy as np
import policy
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.path import Path
from PIL import Image

from utils import diagrams, drawing, nf4, planner, plots

matplotlib.use("agg")
PHONE, SMALLEST = 390, 8  # pixels: a phone's width, and the least height of writing there


@pytest.fixture(autouse=True)
def closed():
    """No figure stays behind, and the style of the course ends with each test."""
    with matplotlib.rc_context():
        yield
    pyplot.close("all")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def soft(count: int):
    weights = np.exp(2 * random(count, count))
    return weights / weights.sum(axis=1, keepdims=True)


LONG = [
    "<|im_start|>",
    "user",
    "\n",
    "Incom",
    "prehensibilities",
    " of",
    " $5",
    " and $6",
    "Ġuncharacteristically",
    "▁it",
]
CHAT = [*LONG, "{", '"verdict"', ":", '"positive"', "}", "<|im_end|>", "\n"]
PADDED = [["<s>", "Good", "</s>", "<pad>"], ["<s>", "Not", "bad", "</s>"]]
ADAPTERS = {"movies": 0.9, "products": 1.2, "an adapter whose name is far too long for it": 0.6, "tweets": 0.9}
TRAINING = planner.plan("roberta-base", r=8, bits=16, seq=128, batch=16).training
FULL = planner.plan("llama-2-7b", r=None, bits=16).training
LLAMA = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (576, 576)) | dict.fromkeys(
    ("k_proj", "v_proj"), (192, 576)
)
LLAMA |= dict.fromkeys(("gate_proj", "up_proj"), (1536, 576)) | {"down_proj": (576, 1536)}
LARGEST = {
    name: (8192 if outputs == 576 else 1024 if outputs == 192 else 28672, 8192) for name, (outputs, _) in LLAMA.items()
}
LARGEST |= {"down_proj": (8192, 28672)}  # Llama-2-70B's

# {name: (drawing, what its words must name, the same with one number changed)}
DRAWINGS = {
    "reading": (
        lambda: diagrams.reading([" A", " film"], [7, 9], random(2, 576), {" is": 0.5, " .": 0.125}),
        ["“A film”", "␣A (7)", "␣film (9)", "576", "␣is 50.0%", "12.5%"],
        lambda: diagrams.reading([" A", " film"], [7, 9], random(2, 576), {" is": 0.5, " .": 0.25}),
    ),
    "reading at its longest": (
        lambda: diagrams.reading(LONG, range(49140, 49150), random(10, 6), {w: 0.9 / 2**i for i, w in enumerate(LONG[:8], 1)}),
        ["$5 and $6", "49149", "6 of 6 numbers"],
        lambda: diagrams.reading(LONG, range(10), -random(10, 6), {w: 0.9 / 2**i for i, w in enumerate(LONG[:8], 1)}),
    ),
    "attention": (
        lambda: diagrams.attention(["not", "good"], [[0.25, 0.75], [0.6, 0.4]]),
        ["2 words", "not takes most from good, 0.75", "good takes most from not, 0.60"],
        lambda: diagrams.attention(["not", "good"], [[0.25, 0.75], [0.7, 0.3]]),
    ),
    "attention at its largest": (
        lambda: diagrams.attention(LONG[2:], soft(8)),
        ["8 words", "prehensibilities"],
        lambda: diagrams.attention(LONG[2:], soft(8).T / soft(8).T.sum(axis=1, keepdims=True)),
    ),
    "padding": (
        lambda: diagrams.padding(PADDED, [[1, 1, 1, 0], [1, 1, 1, 1]]),
        ["2 × 4", "row 1 has 3 tokens", "row 2 has 4 tokens", "1 of 8 squares"],
        lambda: diagrams.padding(PADDED, [[1, 1, 0, 0], [1, 1, 1, 1]]),
    ),
    "padding at its largest": (
        lambda: diagrams.padding([LONG[:8]] * 6, [[1] * 7 + [0]] * 6),
        ["6 × 8", "6 of 48"],
        lambda: diagrams.padding([LONG[:8]] * 5, [[1] * 7 + [0]] * 5),
    ),
    "mask": (
        lambda: diagrams.mask(["Is", " it", "?", "\n", "Yes"], [0, 0, 0, 0, 1]),
        ["5 tokens", "1 are in the loss", "“Yes”"],
        lambda: diagrams.mask(["Is", " it", "?", "\n", "Yes"], [0, 0, 1, 0, 1]),
    ),
    "mask at its longest": (
        lambda: diagrams.mask(CHAT * 8 + ["x" * 300], ([False] * 10 + [True] * 7) * 8 + [True]),
        ["137 tokens", "57 are in the loss"],
        lambda: diagrams.mask(CHAT * 8 + ["x" * 300], ([False] * 9 + [True] * 8) * 8 + [True]),
    ),
    "block": (
        lambda: diagrams.block(6, 24, 1, ("query", "value")),
        ["width 6", "24 × 6", "6 × 24", "rank 1", "query, value"],
        lambda: diagrams.block(6, 24, 2, ("query", "value")),
    ),
    "block of roberta-base": (
        lambda: diagrams.block(768, 3072, 8, diagrams.MATRICES),
        ["width 768", "3072 × 768", "rank 8", "intermediate, output"],
        lambda: diagrams.block(768, 3072, 16, diagrams.MATRICES),
    ),
    "block without LoRA": (
        lambda: diagrams.block(768, 3072),
        ["width 768", "768 × 3072"],
        lambda: diagrams.block(1024, 3072),
    ),
    "block with a narrow MLP": (
        lambda: diagrams.block(4, 4, 4, ("intermediate", "output")),
        ["width 4", "rank 4"],
        lambda: diagrams.block(4, 8, 4, ("intermediate", "output")),
    ),
    "matrices": (
        lambda: diagrams.matrices(LLAMA, 8),
        ["q_proj 576 × 576", "k_proj 192 × 576", "gate_proj 1536 × 576", "down_proj 576 × 1536", "rank 8"],
        lambda: diagrams.matrices(LLAMA, 64),
    ),
    "matrices at their largest": (
        lambda: diagrams.matrices(LARGEST, 8),
        ["k_proj 1024 × 8192", "down_proj 8192 × 28672"],
        lambda: diagrams.matrices(LARGEST | {"q_proj": (4096, 8192)}, 8),
    ),
    "one matrix": (
        lambda: diagrams.matrices({"W": (4, 6)}, 2, rows=[1]),
        ["W 4 × 6", "rank 2"],
        lambda: diagrams.matrices({"W": (6, 4)}, 2, rows=[1]),
    ),
    "adapter": (
        lambda: diagrams.adapter(6, 6, 1, 2),
        ["W is 6 × 6", "A 1 × 6", "B 6 × 1", "2 / 1 = 2", "12 numbers", "0.33 times the 36"],
        lambda: diagrams.adapter(6, 6, 2, 2),
    ),
    "adapter of roberta-base": (
        lambda: diagrams.adapter(768, 3072, 8),
        ["W is 3072 × 768", "A 8 × 768", "alpha / 8", "30,720", "2,359,296"],
        lambda: diagrams.adapter(768, 3072, 16),
    ),
    "adapter of a wide matrix": (
        lambda: diagrams.adapter(4096, 32, 4),
        ["W is 32 × 4096"],
        lambda: diagrams.adapter(4096, 64, 4),
    ),
    "merged": (
        lambda: diagrams.adapter(6, 6, 1, 2, merged=True),
        ["W is 6 × 6", "W + 2 × B A"],
        lambda: diagrams.adapter(6, 6, 2, 2, merged=True),
    ),
    "merged in roberta-base": (
        lambda: diagrams.adapter(768, 3072, 8, merged=True),
        ["3072 × 768", "alpha / 8"],
        lambda: diagrams.adapter(1024, 3072, 8, merged=True),
    ),
    "outer products": (
        lambda: diagrams.outer_products([[1, 2, 0], [3, 6, 1], [2, 4, 5]], 2),
        ["3 × 3", "rank 2", "2 terms", "35% after 1, 0% after 2"],
        lambda: diagrams.outer_products([[1, 2, 0], [3, 6, 1], [2, 4, 5]], 1),
    ),
    "outer products at their largest": (
        lambda: diagrams.outer_products(random(8, 6), 6),
        ["8 × 6", "rank 6", "6 terms"],
        lambda: diagrams.outer_products(random(6, 8), 6),
    ),
    "levels": (
        lambda: diagrams.levels([0.12, -0.31, 0.05, 0.24], nf4.nf4_levels()),
        ["4 weights", "absmax 0.31", "16 levels", "−0.31 gets code 0000 and comes back as −0.31", "0.12 gets code 1011"],
        lambda: diagrams.levels([0.12, -0.31, 0.05, 0.2], nf4.nf4_levels()),
    ),
    "levels of tiny weights": (
        lambda: diagrams.levels([-1.234e-7, 1.1e-7, 0], nf4.fp4_levels()),
        ["3 weights", "1.23e−07"],
        lambda: diagrams.levels([-1.234e-7, 1.1e-7, 0], [-1, -0.3, 0.3, 1]),
    ),
    "product": (
        lambda: diagrams.product([0.12, -0.31, 0.05, 0.24], nf4.nf4_levels(), [1, -2, 0.5, 3]),
        ["1011 0000, 1001 1110 and absmax 0.31", "−0.31", "times the inputs 1, −2, 0.5, 3", "thrown away"],
        lambda: diagrams.product([0.12, -0.31, 0.05, 0.24], nf4.nf4_levels(), [1, -2, 0.5, 2]),
    ),
    "product of tiny weights": (
        lambda: diagrams.product([-1.234e-7, 1.1e-7], nf4.nf4_levels(), [-1.234e-7, 0]),
        ["1.23e−07", "absmax 1.23e−07"],
        lambda: diagrams.product([-1.234e-7, 1.1e-7], nf4.nf4_levels(), [-1.234e-7, 1]),
    ),
    "swapping": (
        lambda: diagrams.swapping(("RoBERTa", 42), {"movies": 0.9, "products": 1.2}),
        ["RoBERTa, 42 MB", "movies 0.9 MB", "products 1.2 MB", "together 44 MB", "2 whole models would be 84 MB"],
        lambda: diagrams.swapping(("RoBERTa", 42), {"movies": 0.9, "products": 2.4}),
    ),
    "swapping small ones": (
        lambda: diagrams.swapping(("reader", 0.34), {"on their side": 0.018, "mirrored": 0.0179}),
        ["reader, 0.3 MB", "on their side 18 kB", "together 0.4 MB", "2 whole models would be 0.7 MB"],
        lambda: diagrams.swapping(("reader", 0.34), {"on their side": 0.018, "mirrored": 0.005}),
    ),
    "swapping at its fullest": (
        lambda: diagrams.swapping(("a base whose name is too long", 3900), ADAPTERS | {"as large": 3900, "larger": 7000}),
        ["3.9 GB", "7.0 GB", "6 whole models would be 23 GB"],
        lambda: diagrams.swapping(("a base whose name is too long", 3900), ADAPTERS),
    ),
    "memory": (
        lambda: diagrams.memory(diagrams.step(TRAINING)),
        [
            *("4 moments", "before", "optimiser step", f"weights {drawing.size(TRAINING.weights)}"),
            f"backward pass {drawing.size(TRAINING.total)}",
        ],
        lambda: diagrams.memory(diagrams.step(FULL)),
    ),
    "memory of one part": (
        lambda: diagrams.memory({"now": {"cache": 5e8}}),
        ["1 moment:", "now 500 MB"],
        lambda: diagrams.memory({"now": {"cache": 4e8, "weights": 1}}),
    ),
    "averaging": (
        lambda: diagrams.averaging([[0.25, -0.5], [0.75, -0.1]]),
        ["2 processes", "half", "process 1 has 0.25, −0.5", "process 2 has 0.75, −0.1", "0.5, −0.3"],
        lambda: diagrams.averaging([[0.25, -0.5], [0.75, 0.1]]),
    ),
    "averaging at its largest": (
        lambda: diagrams.averaging(random(4, 6) * 1e-5),
        ["4 processes", "quarter", "e−05"],
        lambda: diagrams.averaging(random(3, 6) * 1e-5),
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", DRAWINGS)


# --- how a drawing is read ---


def of(figure, kind) -> list:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def look(figure) -> list:
    """All that is seen: patches with their places, shapes and colours, and texts with theirs."""
    patches = [
        (p.get_transform().transform_path(p.get_path()).vertices.round(2).tolist(), p.get_facecolor())
        for p in figure.axes[0].patches
    ]
    return [*patches, *((t.get_text(), t.get_position()) for t in figure.axes[0].texts)]


def inside(one, other) -> bool:
    return other.x0 <= one.x0 and one.x1 <= other.x1 and other.y0 <= one.y0 and one.y1 <= other.y1


def meet(one, other) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def faults(figure) -> list[str]:
    """What makes a drawing hard to read: writing that is small, faint, cut off or crossed."""
    figure.canvas.draw()
    renderer, found, texts = figure.canvas.get_renderer(), [], []
    page = figure.get_tightbbox(renderer).padded(pyplot.rcParams["savefig.pad_inches"])
    arrows = [arrow.get_transform().transform_path(arrow.get_path()) for arrow in of(figure, FancyArrowPatch)]
    lines = [Path(line) for arrow in arrows for line in arrow.to_polygons(closed_only=False)]
    grounds = sorted(of(figure, Rectangle | Circle), key=lambda patch: patch.zorder)
    grounds = [(patch.get_window_extent(renderer), to_hex(patch.get_facecolor())) for patch in grounds]
    for text in figure.axes[0].texts:
        name, box = text.get_text(), text.get_window_extent(renderer)
        if (high := text.get_fontsize() / 72 / page.width * PHONE) < SMALLEST:
            found.append(f"{name!r} is {high:.1f} pixels high")
        if not inside(box, figure.bbox):
            found.append(f"{name!r} leaves the drawing")
        found += [f"{name!r} lies over {other!r}" for other, place in texts if meet(box, place)]
        texts.append((name, box))
        near = [(place, colour) for place, colour in grounds if meet(box, place)]
        ground = ["white", *(colour for place, colour in near if inside(box, place))][-1]
        if not all(inside(box, place) for place, _ in near):
            found.append(f"{name!r} crosses an edge")
        if any(line.intersects_bbox(box, filled=False) for line in lines):
            found.append(f"an arrow crosses {name!r}")
        if (ratio := colours.contrast(text.get_color(), ground)) < colours.TEXT:
            found.append(f"{name!r} has a contrast of {ratio:.1f}")
    return found


def test_the_reader_of_drawings_sees_faults():
    page = drawing.Page()
    page.box(10, 10, 30, 10, fill=plots.BLUE)
    page.text(25, 15, "in the box", color=plots.GREY)
    page.text(40, 15, "across its edge", color="white")
    page.text(60, 40, "small", size=5)
    page.text(99, 40, "far right")
    page.text(50, 60, "one text")
    page.text(52, 61, "on another")
    page.arrow((50, 70), (50, 90))
    page.text(50, 80, "on an arrow")
    page.arrow((20, 70), (20, 90), (30, 90))
    page.text(25, 80, "ok", color=plots.GREY)
    figure, _ = page.done(100, "")
    assert faults(figure) == [
        "'in the box' has a contrast of 1.0",
        "'across its edge' lies over 'in the box'",
        "'across its edge' crosses an edge",
        "'across its edge' has a contrast of 1.0",
        "'small' is 4.8 pixels high",
        "'far right' leaves the drawing",
        "'on another' lies over 'one text'",
        "an arrow crosses 'on an arrow'",
    ]


# --- every drawing ---


@each
def test_it_can_be_read(name):
    figure, _ = DRAWINGS[name][0]()
    assert faults(figure) == []


@each
def test_its_words_name_the_numbers(name):
    draw, named, _ = DRAWINGS[name]
    alt = draw()[1]
    assert not [words for words in named if words not in alt], alt
    assert not policy.poor_alternatives([alt])


@each
def test_another_number_is_another_drawing(name):
    draw, _, other = DRAWINGS[name]
    (one, alt), (two, changed), (again, same) = draw(), other(), draw()
    assert alt != changed and look(one) != look(two)
    assert alt == same and look(one) == look(again)


@each
def test_it_fits_a_phone_and_a_notebook(name):
    picture = Image.open(io.BytesIO(plots._png(DRAWINGS[name][0]()[0])))
    assert picture.width <= 600 and picture.height <= 2.5 * picture.width


# --- what they show is so ---


def area(patch) -> float:
    return patch.get_width() * patch.get_height()


def filled(figure, colour) -> list:
    return [patch for patch in of(figure, Rectangle) if to_hex(patch.get_facecolor()).upper() == colour]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_signs_are_written_and_not_only_coloured():
    vector = [[0.5, -1.0, 0.0, 1.0]]
    figure, _ = diagrams.reading(["A"], [1], vector, {"b": 1})
    assert [text for text in texts(figure) if text in "+−"] == ["+", "−", "+"]
    signs = [text for text in texts(diagrams.outer_products(np.eye(2) - 1, 2)[0]) if text in "+−"]
    assert signs[:2] == ["−", "−"]


@pytest.mark.parametrize("colour", [plots.BLUE, plots.RED])
def test_deep_colours_stay_readable_on_a_projector(colour):
    assert colours.contrast("black", drawing.mixed(colour, 1)) > 7 and drawing.ink(drawing.mixed(colour, 1)) == "black"


@pytest.mark.parametrize("d, r", [(6, 1), (6, 2), (768, 64)])
def test_a_and_b_are_true_to_scale(d, r):
    figure, _ = diagrams.adapter(d, d, r)
    (W,), (A, B) = filled(figure, plots.TINT), filled(figure, plots.ORANGE)
    assert (W.get_width(), W.get_height()) == (A.get_width(), B.get_height())
    assert area(A) == pytest.approx(area(B)) == pytest.approx(area(W) * r / d, rel=0.01)


def test_what_would_be_too_thin_is_drawn_thicker_and_said_so():
    assert any("thinner" in text for text in texts(diagrams.adapter(768, 768, 1)[0]))
    assert not any("thinner" in text for text in texts(diagrams.adapter(6, 6, 1)[0]))


@pytest.mark.parametrize("targets", [("query",), ("key", "attention.output"), diagrams.MATRICES])
def test_lora_stands_at_the_targets(targets):
    figure, _ = diagrams.block(6, 24, 1, targets)
    assert len(filled(figure, plots.ORANGE)) == 2 * len(targets) + 1  # and the legend's
    assert len(filled(figure, plots.TINT)) == 6
    assert {t.get_text() for t in figure.axes[0].texts if t.get_weight() == "bold"} == {*targets}


def test_a_llama_s_matrices_are_true_to_scale_and_have_lora():
    figure, _ = diagrams.matrices(LLAMA, 8)
    drawn = np.array([(patch.get_height(), patch.get_width()) for patch in filled(figure, plots.TINT)])
    np.testing.assert_allclose(drawn / drawn[0, 0] * 576, [*LLAMA.values()])
    assert len(filled(figure, plots.ORANGE)) == 2 * len(LLAMA) + 1  # and the legend's
    assert {t.get_text() for t in figure.axes[0].texts if t.get_weight() == "bold"} == {*LLAMA}


def test_areas_are_true_to_sizes():
    figure, _ = diagrams.swapping(("base", 100), {"a": 4, "b": 1})
    (base,), (b, a) = filled(figure, plots.TINT), filled(figure, plots.ORANGE)
    assert [area(base) / area(b), area(base) / area(a)] == pytest.approx([100, 25])


def test_bars_are_true_to_bytes():
    figure, _ = diagrams.memory({"one": {"weights": 6e9, "adapter": 2e9}, "two": {"weights": 3e9}})
    bars = [patch.get_width() for patch in of(figure, Rectangle)[:3]]
    assert np.divide(bars, bars[0]) == pytest.approx([1, 1 / 3, 1 / 2])


@pytest.mark.parametrize("training", [TRAINING, FULL])
def test_a_step_is_the_planner_s(training):
    held = {moment: sum(parts.values()) for moment, parts in diagrams.step(training).items()}
    assert max(held.values()) == held["backward pass"] == training.total
    assert held["before"] < held["forward pass"] and held["optimiser step"] == training.total - training.activations


def test_codes_and_levels_are_nf4_s():
    weights, levels = np.array([0.12, -0.31, 0.05, 0.24]), nf4.nf4_levels()
    codes, absmax = nf4.quantise(weights, levels)
    figure, _ = diagrams.levels(weights, levels)
    assert [text for text in texts(figure) if len(text) == 4 and {*text} <= {*"01"}] == [
        f"{code:04b}" for code in codes
    ]
    back = nf4.dequantise(codes, absmax, levels, weights.shape)
    assert [*map(drawing.number, back)] == [text for text in texts(figure) if text in map(drawing.number, back)][-4:]
    rings, dots = of(figure, Circle)[::2], of(figure, Circle)[1::2]
    assert [(r.center[0] - 53) / 44 for r in rings] == pytest.approx(levels[codes])
    assert [(d.center[0] - 53) / 44 for d in dots] == pytest.approx(weights / absmax, abs=1e-6)


def test_a_product_is_that_of_the_layer():
    weights, inputs = [0.12, -0.31, 0.05, 0.24], [1, -2, 0.5, 3]
    back = nf4.dequantise(*nf4.quantise(weights, nf4.nf4_levels(), 4), nf4.nf4_levels(), (4,), 4)
    figure, alt = diagrams.product(weights, nf4.nf4_levels(), inputs)
    assert f"sum: {back @ np.array(inputs):.3g}" in texts(figure) and f"{back[0]:.3g}" in alt
    packed = nf4.pack(nf4.quantise(weights, nf4.nf4_levels(), 4)[0])
    assert {f"{byte >> 4:04b} {byte & 15:04b}" for byte in packed} <= set(texts(figure))


def test_the_average_is_written():
    figure, _ = diagrams.averaging([[0.25, -0.5, 1], [0.75, -0.1, -2]])
    assert texts(figure)[-3:] == ["0.5", "−0.3", "−0.5"]


def test_tokens_in_the_loss_are_orange_and_bold():
    figure, alt = diagrams.mask(["a", " b", "\n", "c"], np.array([False, True, False, True]))
    bold = [t.get_text() for t in figure.axes[0].texts if t.get_weight() == "bold"]
    assert bold == ["␣b", "c", "in the loss"] and len(filled(figure, plots.ORANGE)) == 3
    assert "“b" in alt
    assert "“”" in diagrams.mask(["a"], [0])[1]


def test_the_mask_s_squares_follow_it():
    figure, _ = diagrams.padding(PADDED, [[1, 1, 1, 0], [1, 1, 1, 1]])
    assert len(filled(figure, plots.BLUE)) == len(filled(figure, plots.TINT)) == 7
    assert [text for text in texts(figure) if text in "01"] == [*"11101111"]


def test_torch_s_tensors_will_do():
    import torch

    figure, _ = diagrams.attention(["a", "b"], torch.tensor([[0.5, 0.5], [1, 0]]))
    assert texts(figure).count("0.50") == 2
    with pytest.raises(ValueError, match="weights must be a table of numbers"):
        diagrams.attention(["a", "b"], torch.eye(2, requires_grad=True))


# --- what they refuse ---


@pytest.mark.parametrize(
    "draw, sentence",
    [
        (lambda: diagrams.reading(["a"], [1, 2], [[1.0]], {"b": 1}), "1 tokens, 2 ids and 1 vectors"),
        (lambda: diagrams.reading(["a"] * 11, [1] * 11, random(11, 2), {"b": 1}), "1 to 10 tokens"),
        (lambda: diagrams.reading("text", [1], [[1.0]], {"b": 1}), "A list of tokens or words is needed, not 'text'"),
        (lambda: diagrams.reading([], [], [[1.0]], {"b": 1}), "A list of tokens or words is needed"),
        (lambda: diagrams.reading(["a"], [1], [1.0], {"b": 1}), "vectors must be a table"),
        (lambda: diagrams.reading(["a"], [1], [[np.nan]], {"b": 1}), "not finite"),
        (lambda: diagrams.reading(["a"], [1], [[1.0]], {"b": 40}), "1 to 8 probabilities"),
        (lambda: diagrams.reading(["a"], [1], [[1.0]], ["b"]), "scores must be {name: number}"),
        (lambda: diagrams.reading(["a"], [1], [[1.0]], {}), "scores must be {name: number}"),
        (lambda: diagrams.attention(["a", "b"], [[1.0]]), "not 2 words and 1 × 1 weights"),
        (lambda: diagrams.attention(["a", "b"], [[1, 1], [0, 1]]), r"each row's sum must be 1; the sums are \[2.0, 1.0\]"),
        (lambda: diagrams.attention(["a", "b"], [[2, -1], [0, 1]]), "No weight may be below 0"),
        (lambda: diagrams.attention(["a"] * 9, np.eye(9)), "1 to 8 words"),
        (lambda: diagrams.padding([["a"], ["a", "b"]], [[1, 0], [1, 1]]), r"rows have \[1, 2\] tokens: pad them"),
        (lambda: diagrams.padding([["a", "b"]], [[1, 2]]), "1 for a token and 0 for padding"),
        (lambda: diagrams.padding([["a"] * 9], [[1] * 9]), "at most 6 rows of 8"),
        (lambda: diagrams.mask(["a"], [1, 0]), "not 2 for 1 tokens"),
        (lambda: diagrams.mask(["a", "b"], [-100, 5]), "labels != -100"),
        (lambda: diagrams.mask(["a"] * 151, [1] * 151), "1 to 150 tokens"),
        (lambda: diagrams.block(768, 3072, 8, ("querry",)), "no matrix 'querry'; did you mean query"),
        (lambda: diagrams.block(768, 3072, 8), "give both"),
        (lambda: diagrams.block(768, 3072, None, ("query",)), "give both"),
        (lambda: diagrams.block(6, 24, 7, "query"), "r=7, but these matrices have a rank of at most 6"),
        (lambda: diagrams.block(0, 3072), "d=0, but it must be a whole number from 1"),
        (lambda: diagrams.block(768, 3072.0), "inner=3072.0"),
        (lambda: diagrams.matrices({"W": (4, 6)}, 5, [1]), "r=5, but the smallest matrix has a rank of at most 4"),
        (lambda: diagrams.matrices({"W": (4, 6)}, 1), r"has \[4, 3\] for 1"),
        (lambda: diagrams.matrices({}, 1, [0]), r"has \[0\] for 0"),
        (lambda: diagrams.matrices({"W": (0, 6)}, 1, [1]), "W=0, but it must be a whole number from 1"),
        (lambda: diagrams.matrices({"W": (4, 6, 2)}, 1, [1]), "a matrix has two sides"),
        (lambda: diagrams.matrices({"W": (4, 6)}, 0, [1]), "r=0, but it must be"),
        (lambda: diagrams.adapter(6, 4, 5), "r=5, but the rank must be a whole number from 1 to 4"),
        (lambda: diagrams.adapter(6, 4, True), "r=True"),
        (lambda: diagrams.adapter(6, 4, 1, 0), "alpha=0, but"),
        (lambda: diagrams.adapter(6, 4, 1, "16"), "alpha='16', but"),
        (lambda: diagrams.adapter("6", 4, 1), "d_in='6'"),
        (lambda: diagrams.outer_products(np.eye(9), 1), "at most 8 × 8"),
        (lambda: diagrams.outer_products([[1, 2], [2, 4]], 2), "ranks=2, but this matrix has rank 1"),
        (lambda: diagrams.outer_products([[0.0]], 1), "rank 0"),
        (lambda: diagrams.outer_products([[1, 2], [3]], 1), "rows of one length"),
        (lambda: diagrams.outer_products(np.eye(2), 0), "ranks=0"),
        (lambda: diagrams.levels([1] * 5, [-1, 1]), "1 to 4 weights"),
        (lambda: diagrams.levels([1], [-2, 2]), "each from -1 to 1"),
        (lambda: diagrams.levels([1], [1]), "2 to 16 levels"),
        (lambda: diagrams.levels("abc", [-1, 1]), "weights must be a list of numbers"),
        (lambda: diagrams.product([1] * 3, nf4.nf4_levels(), [1] * 3), "2 or 4 weights"),
        (lambda: diagrams.product([1] * 2, nf4.nf4_levels(), [1]), "an input for each weight, not 1 for 2"),
        (lambda: diagrams.product([1] * 2, [-1, 1], [1] * 2), "16 levels"),
        (lambda: diagrams.swapping(("a", 0), {"b": 1}), "MB above 0"),
        (lambda: diagrams.swapping(("a", 1), {}), "adapters must be {name: number}"),
        (lambda: diagrams.swapping(("a", 1), {str(i): 1 for i in range(7)}), "1 to 6 adapters"),
        (lambda: diagrams.memory({"now": {"wieghts": 1}}), r"does not know the parts \['wieghts'\], but weights"),
        (lambda: diagrams.memory({"now": {"weights": -1}}), "Bytes are 0 or more"),
        (lambda: diagrams.memory({"now": {"weights": 0}}), "somewhere above 0"),
        (lambda: diagrams.memory({"now": 5}), "What is held at 'now' must be {name: number}, not 5"),
        (lambda: diagrams.memory({}), "1 to 8 moments"),
        (lambda: diagrams.averaging([[1.0]]), "2 to 4 processes"),
        (lambda: diagrams.averaging([1.0, 2.0]), "gradients must be a table"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        draw()
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250
    assert not pyplot.get_fignums()  # nothing was begun
