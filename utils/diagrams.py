"""The course's concept drawings, made from real shapes and numbers: each gives (figure, alternative text) for `plots.show`.

Bad input raises ValueError before anything is drawn.
"""

import difflib
import reprlib
from numbers import Real

import numpy as np

from utils import lowrank, nf4, plots
from utils.drawing import (
    FROZEN,
    LARGE,
    TRAINED,
    Page,
    array,
    cut,
    many,
    mixed,
    need,
    number,
    pairs,
    said,
    shown,
    size,
    strings,
    thin,
    whole,
    wide,
)

MATRICES = ("query", "key", "value", "attention.output", "intermediate", "output")  # of a block, as RoBERTa calls them
PARTS = {  # of planner.Memory
    "weights": plots.TINT,
    "adapter": plots.ORANGE,
    "gradients": plots.GREEN,
    "optimiser": plots.PINK,
    "activations": plots.SKY,
    "cache": plots.GREY,
}


# --- how a model reads ---


def reading(tokens, ids, vectors, scores):
    """How a language model reads: a text, its tokens with their ids, a vector for each, scores for the next token.

    tokens: 1 to 10 strings; ids: their numbers; vectors: (tokens, d), 12 columns are drawn; scores: {word: probability}, 1 to 8.
    """
    tokens, ids, vectors, scores = strings(tokens), [*ids], array("vectors", vectors, 2), pairs("scores", scores)
    (count, d), given = vectors.shape, f"{len(tokens)} tokens, {len(ids)} ids and {len(vectors)} vectors"
    need(count == len(tokens) == len(ids) <= 10, f"reading() draws 1 to 10 tokens, ids and vectors, not {given}.")
    ordered = sorted(((shown(word), p) for word, p in scores.items()), key=lambda pair: -pair[1])
    probable = len(ordered) <= 8 and min(scores.values()) >= 0 and 0 < sum(scores.values()) <= 1.01
    need(probable, f"reading() draws 1 to 8 probabilities with a sum of at most 1, not {reprlib.repr(scores)}.")
    page, below, some = Page(), 18 + 7 * count, vectors[:, :12]
    page.text(50, 3, said(tokens), LARGE, bold=True)
    page.arrow((50, 6), (50, 11))
    heading = f"vectors: {some.shape[1]} of {many(d, 'number')}"
    for x, text in ((16, "tokens"), (37, "ids"), (71.5, heading)):
        page.text(x, 13.5, text)
    for i, (token, name) in enumerate(zip(tokens, ids, strict=True)):
        y = 17 + 7 * i
        page.box(2, y, 28, 5.4, token, FROZEN)
        page.text(37, y + 2.7, str(name), room=13)
        page.cells(45, y, some[i], 53 / some.shape[1], 5.4, np.abs(some).max())
    page.arrow((50, below - 1), (50, below + 4))
    page.box(2, below + 4, 96, 7, "the model", FROZEN, bold=True, size=LARGE)
    page.arrow((50, below + 11), (50, below + 16))
    page.text(50, below + 18.5, "how likely is each next token?")
    for i, (word, p) in enumerate(ordered):
        y, long = below + 22 + 7 * i, 50 * p / ordered[0][1]
        page.text(29, y + 2.7, word, room=27, ha="right")
        page.box(31, y, long, 5.4, fill=TRAINED)
        page.text(33 + long, y + 2.7, f"{p:.1%}", ha="left")
    named = ", ".join(f"{token} ({name})" for token, name in zip(tokens, ids, strict=True))
    told = f"From top to bottom: the text “{said(tokens)}”; its {many(count, 'token')} with their ids, {named}; {heading}, as "
    told += f"colours; the model; and the likeliest next tokens, {', '.join(f'{word} {p:.1%}' for word, p in ordered)}."
    return page.done(below + 22 + 7 * len(ordered), told)


def attention(words, weights):
    """How much each word takes from each: a heat map with its numbers, a row for each word that reads.

    words: 1 to 8; weights: (words, words), none below 0, each row's sum 1.
    """
    words, weights = strings(words), array("weights", weights, 2)
    count, sums = len(words), weights.sum(axis=1)
    shape = " × ".join(map(str, weights.shape))
    square = count <= 8 and weights.shape == (count, count)
    need(square, f"attention() draws 1 to 8 words and as many rows and columns, not {count} words and {shape} weights.")
    fair = weights.min() >= 0 and np.abs(sums - 1).max() < 0.02
    need(fair, f"No weight may be below 0 and each row's sum must be 1; the sums are {sums.round(2).tolist()}.")
    cell, longest = min(20, 74 / count), max(map(wide, words))
    flat = longest < cell - 1
    page, top = Page(), 7 + (3 if flat else min(22, longest))
    page.text(2, 2.5, "how much each word (row) takes from each (column)", ha="left")
    for i, word in enumerate(words):
        y = top + i * cell
        page.text(24 + (i + 0.5) * cell, top - 1, word, room=22, va="bottom", rotation=0 if flat else 90)
        page.text(22, y + cell / 2, word, room=20, ha="right")
        for j, weight in enumerate(weights[i]):
            page.box(24 + j * cell, y, cell, cell, number(weight, ".2f"), mixed(plots.BLUE, min(1, weight)))
    most = [(word, words[row.argmax()], row.max()) for word, row in zip(words, weights, strict=True)]
    told = "; ".join(f"{word} takes most from {other}, {weight:.2f}" for word, other, weight in most)
    told = f"A square of attention weights among {many(count, 'word')}: {told}. Each row's sum is 1."
    return page.done(top + count * cell + 1, told)


def padding(token_rows, mask):
    """A batch with padding, and its mask below it, as squares; both are tables of the same shape, at most 6 x 8."""
    rows, mask = [*map(strings, token_rows)], array("mask", mask, 2)
    (count, long), lengths = mask.shape, [len(row) for row in rows]
    need(lengths == [long] * count, f"The mask is {count} × {long}, but the rows have {lengths} tokens: pad them.")
    need(count <= 6 and long <= 8, f"padding() draws at most 6 rows of 8 tokens, not {count} of {long}.")
    need(np.isin(mask, (0, 1)).all(), "A mask holds 1 for a token and 0 for padding, and nothing else.")
    page, width, below, mask = Page(), 96 / long, 13 + 7 * count, mask.astype(int)
    page.text(2, 3, "tokens", bold=True, ha="left")
    page.text(2, below - 3, "attention mask", bold=True, ha="left")
    for (i, j), real in np.ndenumerate(mask):
        x, y, line = 2 + j * width, 6 + 7 * i, {} if real else {"linestyle": ":"}
        page.box(x, y, width, 7, rows[i][j], FROZEN if real else "white", **line)
        page.box(x, y + below - 6, width, 7, str(real), plots.BLUE if real else "white", bold=bool(real), **line)
    share = f"{mask.size - mask.sum()} of {mask.size} squares are padding"
    page.text(2, below + 7 * count + 4, share, ha="left")
    told = "; ".join(f"row {i} has {many(real, 'token')}" for i, real in enumerate(mask.sum(axis=1), start=1))
    told = f"A batch, {count} × {long} squares, and below it its mask with 1 for a token and 0 for padding: {told}; {share}."
    return page.done(below + 7 * count + 7, told)


def mask(tokens, learns):
    """A chat's text token by token, up to 150; those in the loss are orange and bold. learns: True or False for each."""
    tokens, learns = strings(tokens), array("learns", learns, 1)
    count = len(tokens)
    need(count == len(learns), f"mask() needs True or False for each token, not {len(learns)} for {count} tokens.")
    need(count <= 150, f"mask() draws 1 to 150 tokens, not {count}.")
    need(np.isin(learns, (0, 1)).all(), "mask() needs True or False for each token: of labels, labels != -100.")
    page, x, y = Page(), 2.0, 1.0
    for token, learn in zip(tokens, learns == 1, strict=True):
        text = cut(token, 93, bold=learn)
        width = wide(text, bold=learn) + 2.6
        if x + width > 98:
            x, y = 2.0, y + 7
        page.box(x, y, width, 5.6, text, TRAINED if learn else "white", bold=learn)
        x, y = (2.0, y + 7) if token.endswith("↵") else (x + width + 0.8, y)
    y += 10 if x > 2 else 3
    for x, fill, meaning in ((2, TRAINED, "in the loss"), (40, "white", "only read")):
        page.box(x, y, 5, 4, fill=fill)
        page.text(x + 7, y + 2, meaning, bold=fill == TRAINED, ha="left")
    learnt = said(token for token, learn in zip(tokens, learns, strict=True) if learn)
    told = f"{many(count, 'token')} of a chat's text, of which {learns.sum():.0f} are in the loss: “{learnt}”"
    return page.done(y + 5, f"{told}. The others are only read.")


# --- a block and its adapters ---


def block(d: int, inner: int, r: int | None = None, targets=()):
    """A transformer block: six matrices to scale, norms after the sums as in RoBERTa, residual paths, LoRA at `targets`.

    d: width; inner: width inside the MLP; r: LoRA's rank, drawn thicker than it is; targets: some of MATRICES.
    """
    targets = [targets] if isinstance(targets, str) else [*targets]
    whole(d=d, inner=inner, **({} if r is None else {"r": r}))
    for target in targets:
        near = difflib.get_close_matches(str(target), MATRICES, n=1) or MATRICES
        need(target in MATRICES, f"A block has no matrix {target!r}; did you mean {' or '.join(near)}?")
    need(bool(targets) == (r is not None), f"r={r}, targets={targets}: give both for LoRA, neither for the bare block.")
    need(r is None or r <= min(d, inner), f"r={r}, but these matrices have a rank of at most {min(d, inner)}.")
    page, unit = Page(), min(10 / d, 40 / inner)
    lora = (unit, r, targets)
    end = _mlp(page, _attend(page, d, *lora), d, inner, *lora)
    page.arrow((56, end), (56, end + 5))
    told = f"A transformer block of width {d}: query, key, value and attention.output are {d} × {d}, intermediate is {inner} × {d}, "
    told += f"output {d} × {inner}. A residual path leads past each half to a sum and a norm."
    if r is not None:
        page.box(2, end + 7, 4, 3, fill=TRAINED)
        page.text(8, end + 8.5, f"LoRA: A is {r} × inputs, B is outputs × {r}", ha="left")
        told += f" LoRA's thin A and B of rank {r} stand beside {', '.join(targets)}."
    return page.done(end + (6 if r is None else 11), told)


def matrices(shapes, r: int, rows=(4, 3)):
    """The matrices of a block to scale, in rows of so many, with LoRA of rank r beside each: {name: (outputs, inputs)}."""
    shapes = {str(name): tuple(shape) for name, shape in dict(shapes).items()}
    fits = sum(rows) == len(shapes) and min(rows, default=0) >= 1
    need(fits, f"matrices() needs rows for each of its matrices, but has {[*rows]} for {len(shapes)}.")
    for name, shape in shapes.items():
        need(len(shape) == 2, f"{name} has the shape {shape}, but a matrix has two sides, outputs and inputs.")
        for side in shape:
            whole(**{name: side})
    whole(r=r)
    least = min(map(min, shapes.values()))
    need(r <= least, f"r={r}, but the smallest matrix has a rank of at most {least}.")
    left = iter(shapes.items())
    groups = [[next(left) for _ in range(count)] for count in rows]
    unit = 48 / max(sum(inputs for _, (_, inputs) in group) for group in groups)
    page, y = Page(), 1.0
    for group in groups:
        ends = []
        for place, (name, shape) in enumerate(group):
            x = 2 + 96 * place / len(group)
            ends.append(_matrix(page, x, y, name, shape, unit, r, [name], below=shape[1] > shape[0]))
        y = max(ends) + thin(r, unit, 0.7) + 4
    page.box(2, y, 4, 3, fill=TRAINED)
    page.text(8, y + 1.5, f"LoRA: A is {r} × inputs, B is outputs × {r}", ha="left")
    named = ", ".join(f"{name} {outputs} × {inputs}" for name, (outputs, inputs) in shapes.items())
    return page.done(
        y + 5, f"The matrices of a block, to scale: {named}. Beside each stand LoRA's thin A and B of rank {r}."
    )


def _attend(page, d, unit, r, targets) -> float:
    """From x to the first norm; the height at which that ends."""
    page.box(16, 1, 82, 7, f"x: {many(d, 'number')} for each token")
    for x, name in zip((16, 44, 72), MATRICES, strict=False):
        page.arrow((x + 4, 8), (x + 4, 13))
        y = _matrix(page, x, 13, name, (d, d), unit, r, targets)
        page.arrow((x + 4, y), (x + 4, y + 5))
    page.box(16, y + 5, 82, 7, "attention: tokens look at tokens")
    page.arrow((48, y + 12), (48, y + 17))
    y = _matrix(page, 44, y + 17, "attention.output", (d, d), unit, r, targets)
    page.arrow((48, y), (48, y + 5))
    return _sum(page, 4.5, y + 5)


def _mlp(page, top, d, inner, unit, r, targets) -> float:
    """From the first norm to the second; the height at which that ends."""
    tall, side = inner * unit, d * unit
    middle = top + 9.2 + tall / 2
    page.arrow((20, top), (20, top + 5))
    end = _matrix(page, 16, top + 5, "intermediate", (inner, d), unit, r, targets)
    page.arrow((17 + side + 4 * ("intermediate" in targets), middle), (47, middle))
    page.text(43.4, 2.8 + max(middle, top + 9.2 + thin(r or 1, unit, 0.7)), "GELU")
    end = max(end, _matrix(page, 48, middle - side / 2 - 4.2, "output", (d, inner), unit, r, targets, below=True))
    page.arrow((48 + tall, middle), (94, middle), (94, end + 5))
    return _sum(page, top - 2, end + 5)


def _matrix(page, x, y, name, shape, unit, r, targets, below=False) -> float:
    """A matrix under its name, its shape below, LoRA beside or below it if it is a target; the height at which that ends."""
    height, width = shape[0] * unit, shape[1] * unit
    end, slim = y + height + 8.6, thin(r or 1, unit, 0.7)
    page.text(x, y + 2, name, bold=name in targets, ha="left")
    page.box(x, y + 4.2, width, height, fill=FROZEN)
    page.text(x, y + height + 6.6, f"{shape[0]} × {shape[1]}", ha="left")
    if name in targets and below:
        page.lora(x, end, width, height, slim)
        end += height
    elif name in targets:
        page.lora(x + width + 1.2, y + 4.2, width, height, slim)
    return end


def _sum(page, start, y) -> float:
    """The residual path from the height `start` to the sum and norm at `y`; the height at which they end."""
    page.box(16, y, 82, 7, "add the residual, then norm")
    page.arrow((16, start), (7, start), (7, y + 2), (16, y + 2))
    page.text(3.5, (start + y) / 2, "residual", rotation=90)
    return y + 7


def adapter(d_in: int, d_out: int, r: int, alpha: float | None = None, merged: bool = False):
    """W frozen beside A and B, to scale, the scaling alpha / r and the sum, on the fly; or merged into one matrix."""
    whole(d_in=d_in, d_out=d_out)
    held, above = lowrank.lora_parameters(d_out, d_in, r), isinstance(alpha, Real) and 0 < alpha < np.inf
    need(alpha is None or above, f"alpha={alpha!r}, but it must be a number above 0, or None to write alpha / r.")
    factor = f"alpha / {r}" if alpha is None else f"{alpha / r:.3g}"
    scaling = factor if alpha is None else f"{alpha:g} / {r} = {factor}"
    told = f"W is {d_out} × {d_in}, A {r} × {d_in} and B {d_out} × {r}. "
    if merged:
        told += f"Once, W + {factor} × B A is computed; from then on x, {many(d_in, 'number')}, meets one matrix."
        return _merged(Page(), d_in, d_out, r, factor, told)
    told += f"x, {many(d_in, 'number')}, goes through the frozen W, and through A, B and the scaling {scaling}; both are added. "
    told += f"A and B hold {held:,} numbers, {held / (d_in * d_out):.2g} times the {d_in * d_out:,} of W."
    return _on_the_fly(Page(), d_in, d_out, r, scaling, told)


def _on_the_fly(page, d_in, d_out, r, scaling, told):
    unit = 38 / max(d_in, d_out)
    width, height, slim = d_in * unit, d_out * unit, thin(r, unit, 0.4)
    page.box(2, 1, 96, 7, f"x: {many(d_in, 'number')}", size=LARGE)
    for x, name, rows, high, fill in ((25, "W, frozen", d_out, height, FROZEN), (75, "A, trained", r, slim, TRAINED)):
        page.arrow((x, 8), (x, 13))
        page.text(x, 15.5, f"{name}: {rows} × {d_in}", room=48)
        page.box(x - width / 2, 18.5, width, high, fill=fill, linewidth=0.9 if fill == FROZEN else 0.3)
    y = 18.5 + slim
    page.arrow((75, y), (75, y + 7))
    page.text(77, y + 3.5, many(r, "number"), ha="left", room=22)
    page.text(75, y + 9.5, f"B, trained: {d_out} × {r}", room=48)
    page.box(75 - slim / 2, y + 12.5, slim, height, fill=TRAINED, linewidth=0.3)
    y += 12.5 + height
    page.arrow((75, y), (75, y + 5))
    page.box(52, y + 5, 46, 7, f"× {scaling}")
    page.arrow((75, y + 12), (75, y + 17))
    page.arrow((25, 18.5 + height), (25, y + 17))
    page.box(2, y + 17, 96, 7, f"sum: h, {many(d_out, 'number')}", size=LARGE)
    if slim > 1.2 * r * unit:
        page.text(50, y + 27.5, "A and B are even thinner than drawn.")
        y += 5
    return page.done(y + 25, told)


def _merged(page, d_in, d_out, r, factor, told):
    unit = 24 / max(d_in, d_out)
    width, height = d_in * unit, d_out * unit
    page.text(2, 3, "once, after training", bold=True, ha="left")
    for x, name, fill in ((15, "W", FROZEN), (50, f"{factor} × B A", ""), (85, "merged", plots.SKY)):
        page.text(x, 8, name, room=42)
        if fill:
            page.box(x - width / 2, 11, width, height, fill=fill)
    page.lora(50 - width / 2, 11, width, height, thin(r, unit, 0.4))
    for x, sign in ((32.5, "+"), (68, "=")):
        page.text(x, 11 + height / 2, sign, LARGE, bold=True)
    y, width, height = height + 17, width * 1.5, height * 1.5
    page.text(2, y, "from then on", bold=True, ha="left")
    page.box(25, y + 4, 50, 7, f"x: {many(d_in, 'number')}", size=LARGE)
    page.arrow((50, y + 11), (50, y + 16))
    page.text(50, y + 18.5, f"one matrix: {d_out} × {d_in}")
    page.box(50 - width / 2, y + 21.5, width, height, fill=plots.SKY)
    page.arrow((50, y + 21.5 + height), (50, y + 26.5 + height))
    page.box(25, y + 26.5 + height, 50, 7, f"h: {many(d_out, 'number')}", size=LARGE)
    return page.done(y + 34.5 + height, told)


def swapping(base, adapters):
    """One base and the adapters that take turns on it; areas are true to sizes.

    base: (name, MB); adapters: {name: MB}, 1 to 6 of them; the first is in use.
    """
    name, adapters = base[0], pairs("adapters", adapters)
    sizes = array("sizes", [base[1], *adapters.values()], 1)
    need(sizes.min() > 0, f"Sizes are MB above 0, not {sizes.tolist()}.")
    need(len(adapters) <= 6, f"swapping() draws 1 to 6 adapters, not {len(adapters)}.")
    lengths = np.sqrt(sizes)
    page, (side, *sides) = Page(), lengths * min(38 / lengths.max(), 90 / lengths[1:].sum())
    tops = 6 + np.cumsum([0, *(s + 9 for s in sides)])
    top = max(6, tops[-1] / 2 - side / 2)
    middle, (whole, *parts) = top + side / 2, map(size, 1e6 * sizes)
    page.text(2, top - 3, f"{name}, frozen", bold=True, ha="left", room=46)
    page.box(2, top, side, side, fill=FROZEN)
    page.text(2, top + side + 3, whole, ha="left")
    for y, s, key, part in reversed([*zip(tops, sides, adapters, parts, strict=False)]):
        used, path = y == tops[0], ((59, y + s / 2), (52, y + s / 2), (52, middle))
        page.text(60, y - 2.5, f"{key}: {part}", bold=used, ha="left", room=39)
        page.box(60, y, s, s, fill=TRAINED)
        if used:  # drawn last, over the others
            page.arrow(*path, (2.5 + side, middle), color="black", linewidth=2.2)
        else:
            page.arrow(*path, style="-", linestyle="--")
    end, count = max(top + side + 9, tops[-1]), len(adapters)
    both, apart = size(1e6 * sizes.sum()), size(1e6 * sizes[0] * count)
    page.text(2, end, f"one base, {many(count, 'adapter')}: {both}", ha="left")
    page.text(2, end + 5, f"{many(count, 'whole model')}: {apart}", ha="left")
    told = ", ".join(f"{key} {part}" for key, part in zip(adapters, parts, strict=True))
    told = f"One frozen base, {name}, {whole}, and beside it its adapters, {told}, of which the first is plugged in. Areas are true to "
    return page.done(end + 8, f"{told}sizes: together {both}, and {many(count, 'whole model')} would be {apart}.")


# --- sums, levels, memory, processes ---


def outer_products(matrix, ranks: int):
    """A matrix of at most 8 x 8 as a sum of `ranks` columns times rows, those of its SVD, and the sum's error after each."""
    matrix = array("matrix", matrix, 2)
    (rows, columns), rank, most = matrix.shape, lowrank.numerical_rank(matrix), np.abs(matrix).max()
    need(max(rows, columns) <= 8, f"outer_products() draws at most 8 × 8 numbers, not {rows} × {columns}.")
    whole(ranks=ranks)
    need(ranks <= rank, f"ranks={ranks}, but this matrix has rank {rank}: after so many terms nothing is left.")
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    signs = np.sign(u[np.abs(u).argmax(axis=0), range(len(s))])  # an SVD leaves open which of a pair is turned round
    u, vt, cell = u * signs, vt * signs[:, None], 21 / max(rows, columns)
    page, y, errors = Page(), 6 + rows * cell, []
    page.text(2, 3, "the matrix", bold=True, ha="left")
    page.cells(2, 6, matrix, cell, cell, most)
    for i in range(ranks):
        errors.append(f"{lowrank.tail_error(s, i + 1):.0%}")
        for x, text in ((2, f"{'+' if i else '='} column × row"), (43, "is"), (76, f"sum: error {errors[-1]}")):
            page.text(x, y + 6, text, bold=x == 2, ha="left")
        page.cells(2, y + 9, s[i] * u[:, [i]], cell, cell)
        page.text(5 + cell, y + 9 + rows * cell / 2, "×", LARGE)
        page.cells(8 + cell, y + 9 + (rows - 1) * cell / 2, vt[[i]], cell, cell)
        page.cells(43, y + 9, s[i] * np.outer(u[:, i], vt[i]), cell, cell, most)
        page.cells(76, y + 9, lowrank.best_rank_r(matrix, i + 1), cell, cell, most)
        y += 9 + rows * cell
    told = f"Numbers as colours and signs: a matrix, {rows} × {columns}, of rank {rank}; then {many(ranks, 'term')}, each a column times "
    told += "a row, their product, and the sum so far. Its error is "
    return page.done(y + 2, f"{told}{', '.join(f'{error} after {i}' for i, error in enumerate(errors, start=1))}.")


def levels(weights, levels):
    """Four-bit storage by hand: weights over their absmax, the nearest level, its code, and what comes back.

    weights: 1 to 4 numbers, one block; levels: 2 to 16 numbers from -1 to 1, as from nf4.nf4_levels().
    """
    weights, levels = array("weights", weights, 1), array("levels", levels, 1)
    need(len(weights) <= 4, f"levels() draws 1 to 4 weights, not {len(weights)}.")
    need(2 <= len(levels) <= 16 and np.abs(levels).max() <= 1, "levels() draws 2 to 16 levels, each from -1 to 1.")
    codes, (absmax,) = nf4.quantise(weights, levels, block=4)
    back, scaled, bits = levels[codes] * absmax, weights / (absmax or 1), (len(levels) - 1).bit_length()
    names = [f"{code:0{bits}b}" for code in codes]
    table = {"weight": weights, f"over absmax {number(absmax)}": scaled, "nearest level": levels[codes]}
    table |= {f"its code, {many(bits, 'bit')}": names, "level × absmax": back}
    page, bottom = Page(), 45 + 6 * len(weights)
    for i, (step, row) in enumerate(table.items()):
        page.text(2, 8.5 + 6 * i, step, ha="left", room=33)
        for j, value in enumerate(row):
            text = value if row is names else number(value)
            page.text(44 + 16 * j, 8.5 + 6 * i, text, bold=row is weights or row is back)
    for x in 53 + 44 * levels:
        page.arrow((x, 42), (x, bottom), style="-", linewidth=0.8)
    for j, (x, nearest) in enumerate(zip(53 + 44 * scaled, 53 + 44 * levels[codes], strict=True)):
        page.text(44 + 16 * j, 2.5, "abcd"[j], LARGE, bold=True)
        page.text(3, 46 + 6 * j, "abcd"[j], LARGE, bold=True)
        page.arrow((x, 46 + 6 * j), (nearest, 46 + 6 * j), style="-", linewidth=2.5, color=plots.BLUE)
        page.dot(nearest, 46 + 6 * j, 1.7, "white")
        page.dot(x, 46 + 6 * j)
    for value in (-1, 0, 1):
        page.text(53 + 44 * value, bottom + 2.5, number(value))
    page.text(53, bottom + 7, f"lines: the {len(levels)} levels · ● a weight · ○ its level")
    ends = zip(map(number, weights), names, map(number, back), strict=True)
    told = "; ".join(f"{weight} gets code {name} and comes back as {end}" for weight, name, end in ends)
    told = f"{many(len(weights), 'weight')} over absmax {number(absmax)}, on a line with {len(levels)} levels: {told}."
    return page.done(bottom + 10, told)


def product(weights, levels, inputs):
    """One row of a four-bit layer at work: bytes to codes, codes to levels, times absmax, times the inputs, and the sum.

    weights: 2 or 4 numbers, one block; levels: 16 numbers from -1 to 1, as from nf4.nf4_levels(); inputs: as many as weights.
    """
    weights, levels, inputs = (
        array(name, given, 1) for name, given in dict(weights=weights, levels=levels, inputs=inputs).items()
    )
    count = len(weights)
    need(count in (2, 4), f"product() draws 2 or 4 weights, for two codes make a byte; not {count}.")
    need(len(inputs) == count, f"product() needs an input for each weight, not {len(inputs)} for {count}.")
    need(len(levels) == 16 and np.abs(levels).max() <= 1, "product() needs 16 levels, each from -1 to 1.")
    codes, (absmax,) = nf4.quantise(weights, levels, block=4)
    bits, back = [f"{code:04b}" for code in codes], levels[codes] * absmax
    bytes_, total = [f"{a} {b}" for a, b in zip(bits[::2], bits[1::2], strict=True)], number(back @ inputs)
    page, columns = Page(), [46 + 15.5 * i for i in range(count)]
    page.text(2, 3, f"stored: {many(count // 2, 'byte')}, and absmax {number(absmax)}", bold=True, ha="left")
    for i, byte in enumerate(bytes_):
        page.box(39 + 31 * i, 6, 29.5, 7, byte, FROZEN, bold=True)
    table = {"the level of each code": map(number, levels[codes]), "× absmax: weights": map(number, back)}
    table["× inputs"] = map(number, inputs)
    y = 18
    for step, row in table.items():
        page.text(2, y + 11, step, ha="left", room=34)
        for x, value in zip(columns, row, strict=True):
            page.arrow((x, y - 5), (x, y + 7.5))
            page.box(x - 6.5, y + 7.5, 13, 7, value, "white" if step == "× inputs" else plots.SKY)
        y += 19.5
    end = columns[-1] + 6.5
    for x in columns:
        page.arrow((x, y - 5), (x, y + 1))
    page.box(39.5, y + 1, end - 39.5, 7, f"sum: {total}", bold=True, size=LARGE)
    page.text(2, y + 12, "only the bytes and absmax stay in memory", ha="left")
    ends = ", ".join(map(number, back))
    told = f"One row of a layer in four bits. Stored are {', '.join(bytes_)} and absmax {number(absmax)}. For one product the codes "
    told += f"become levels, {', '.join(map(number, levels[codes]))}; times absmax they are the weights {ends}; times the inputs "
    return page.done(
        y + 15, f"{told}{', '.join(map(number, inputs))} they add up to {total}. Then the weights are thrown away."
    )


def step(training):
    """{moment: {part: bytes}} of a training step after the first, from `planner.plan(...).training`, for `memory`."""
    more = {"before": (), "forward pass": ("activations",), "backward pass": ("activations", "gradients")}
    more["optimiser step"] = ("gradients",)
    kept = ("weights", "adapter", "optimiser")
    return {moment: {part: getattr(training, part) for part in (*kept, *parts)} for moment, parts in more.items()}


def memory(moments):
    """What memory holds at each moment of a training step, as stacked bars: {moment: {part: bytes}}, parts out of PARTS."""
    moments = {str(moment): pairs(f"What is held at {moment!r}", parts) for moment, parts in dict(moments).items()}
    need(1 <= len(moments) <= 8, f"memory() draws 1 to 8 moments, not {len(moments)}.")
    largest = {part: max(parts.get(part, 0) for parts in moments.values()) for part in PARTS}
    unknown = {part for parts in moments.values() for part in parts} - {*PARTS}
    need(not unknown, f"memory() does not know the parts {sorted(unknown)}, but {', '.join(PARTS)}.")
    totals = {moment: sum(parts.values()) for moment, parts in moments.items()}
    fair = min(min(parts.values()) for parts in moments.values()) >= 0 and max(totals.values()) > 0
    need(fair, f"Bytes are 0 or more, and somewhere above 0; here is {reprlib.repr(moments)}.")
    page, y = Page(), 12 * len(moments) + 2
    for i, (moment, total) in enumerate(totals.items()):
        x = 2.0
        page.text(2, 12 * i + 2.5, f"{moment}: {size(total)}", bold=True, ha="left")
        for part, fill in PARTS.items():
            if width := 96 * moments[moment].get(part, 0) / max(totals.values()):
                page.box(x, 12 * i + 5, width, 5.5, part if wide(part) < width - 2 else "", fill)
                x += width
    parts = [(part, f"{part} {size(held)}") for part, held in largest.items() if held]
    for i, (part, text) in enumerate(parts):
        x, low = 2 + 50 * (i % 2), y + 6 * (i // 2)
        page.box(x, low, 4, 4, fill=PARTS[part])
        page.text(x + 6, low + 2, text, ha="left", room=42)
    told = "; ".join(f"{moment} {size(total)}" for moment, total in totals.items())
    told = f"Stacked bars of what memory holds at {many(len(moments), 'moment')}: {told}. Parts, each at its largest: "
    return page.done(y + 6 * -(-len(parts) // 2), f"{told}{', '.join(text for _, text in parts)}.")


def averaging(gradients):
    """Processes that each compute gradients on their share of a batch and average them: (2 to 4 processes, 1 to 6 numbers)."""
    gradients = array("gradients", gradients, 2)
    count, numbers = gradients.shape
    fair = 2 <= count <= 4 and numbers <= 6
    need(fair, f"averaging() draws 2 to 4 processes of 1 to 6 numbers, not {count} of {numbers}.")
    share = {2: "half", 3: "third", 4: "quarter"}[count]
    page, mean, most = Page(), gradients.mean(axis=0), np.abs(gradients).max()
    width, low = 96 / count, 36 + 6 * numbers
    page.text(50, 3, "one batch, split", bold=True)
    for i, gradient in enumerate(gradients):
        x = 2 + width * (i + 0.5)
        left = x - width / 2 + 0.5
        page.box(left, 6, width - 1, 7, f"{share} {i + 1}")
        page.arrow((x, 13), (x, 17))
        page.box(left, 17, width - 1, 7, f"process {i + 1}", FROZEN, bold=True)
        page.arrow((x, 24), (x, 28))
        page.text(x, 30, "gradients")
        page.cells(x - 8, 32.5, gradient[:, None], 16, 6, most, ".3g")
        page.arrow((x, low - 3.5), (x, low + 1))
        page.arrow((x, 2 * low - 26), (x, 2 * low - 21))
        page.box(left, 2 * low - 21, width - 1, 7, "same step", FROZEN)
    page.box(2, low + 1, 96, low - 27)
    page.text(50, low + 4, "all exchange: the average", bold=True)
    page.cells(42, low + 7, mean[:, None], 16, 6, most, ".3g")
    told = "; ".join(f"process {i} has {', '.join(map(number, row))}" for i, row in enumerate(gradients, start=1))
    told = f"{count} processes with one model each compute gradients on a {share} of the batch: {told}. They exchange the average, "
    return page.done(2 * low - 13, f"{told}{', '.join(map(number, mean))}, and all take the same step.")
