"""A file of rows, read as it was written: CSV and its kin, JSON, JSON Lines, Parquet and .xlsx.

Nothing is interpreted: "007", "N/A" and "TRUE" stay what they are. What had to be assumed (encoding, separator) is told.
"""

import csv
import difflib
import gzip
import io
import json
import os
import re
import unicodedata
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path

FORMATS = "CSV (or TSV), JSON, JSON Lines, Parquet or .xlsx"
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# What a file begins with when it is none of these, and what to do about it
FOREIGN = {
    b"\xd0\xcf\x11\xe0": "an old or password-protected Office file; save it as .xlsx (without a password) or CSV",
    b"%PDF": "a PDF; copy its table into a spreadsheet and save that as .xlsx or CSV",
    b"SQLite format 3": "a database; export the table as CSV",
    b"7z\xbc\xaf": "a packed archive; unpack it first",
    b"Rar!": "a packed archive; unpack it first",
    b"BZh": "a packed file; unpack it first",
    b"\xfd7zXZ": "a packed file; unpack it first",
    b"(\xb5/\xfd": "a packed file; unpack it first",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"\x89HDF": "an HDF5 file; save it as Parquet or CSV",
    b"\x80\x04": "a pickle, which can run code when it is opened; save the table as CSV or Parquet",
    b"\x80\x05": "a pickle, which can run code when it is opened; save the table as CSV or Parquet",
    b"\x89PNG": "a picture; type or export the table",
    b"{\\rtf": "a text document; save the table as CSV",
}
BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
csv.field_size_limit(2**31 - 1)  # its default refuses texts of more than 131,072 letters
# The encodings in which spreadsheets used to write; of two that read a file alike, the first gives the name.
GUESSED = (
    *(
        "cp1252",
        "iso8859_15",
        "cp1250",
        "iso8859_2",
        "cp1251",
        "koi8_r",
        "cp1253",
        "cp1254",
        "cp1255",
        "cp1256",
        "cp1257",
    ),
    *("cp874", "cp932", "euc_jp", "gb18030", "big5", "cp949"),
)


class FileError(ValueError):
    """What was given, what is allowed and what to do, in a sentence; `rows` holds the numbers of the rows it is about."""

    def __init__(self, sentence: str, rows=()):
        super().__init__(sentence)
        self.rows = list(rows)


class TableError(FileError):
    """A table cannot be used."""


@dataclass(frozen=True)
class Sheet:
    """Columns by name and rows by their number in the file; a cell is a str, or a list or dict where JSON or Parquet nests."""

    file: str
    names: list[str]
    rows: dict[int, list]
    unit: str = "row"  # what the numbers count: rows as a spreadsheet shows them, lines, objects
    told: list[str] = field(default_factory=list)  # how it was read


def read(
    file,
    sheet: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    names=None,
) -> Sheet:
    """The Sheet in `file`; TableError if it cannot be read without a guess that might be wrong.

    sheet: of an .xlsx file with several. encoding, separator: of a text file, where they are not found by themselves.
    names: the columns of a file that has no header.
    """
    if not isinstance(file, (str, os.PathLike)):
        raise TableError(
            f"The table is a {type(file).__name__}; pass the path of a file ({FORMATS}). pandas writes one with to_csv(path, index=False)."
        )
    return understood(_bytes(Path(file)), Path(file), sheet, encoding, separator, names)


def understood(
    raw: bytes, path: Path, sheet=None, encoding=None, separator=None, names=None, columns: int = 2
) -> Sheet:
    """`read` of a file that was read already. columns: the least that make sense, 1 or 2."""
    if isinstance(names, str) or (separator is not None and len(separator) != 1):
        raise TableError("names is a list such as ['sentence', 'label'], and separator a single character such as ';'.")
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw, path = gzip.decompress(raw), path.with_suffix("")
        except (OSError, EOFError, ValueError) as error:
            raise TableError(f"{path.name} is a damaged gzip file ({error}); copy or download it again.") from None
    name = path.name
    if kind := next((what for magic, what in FOREIGN.items() if raw.startswith(magic)), None):
        raise TableError(f"{name} is {kind}. The course reads {FORMATS}.")
    if raw.startswith(b"PAR1"):
        found = _parquet(raw, name)
    elif raw.startswith(b"PK\x03\x04"):
        found = _xlsx(raw, name, sheet, names)
    else:
        text, told = _decode(raw, encoding, name)
        if not text.strip():
            raise TableError(f"{name} is empty; it needs a line of column names and rows under it.")
        if re.match(r"\s*<(!doctype|html|\?xml|table)\b", text, re.IGNORECASE):
            raise TableError(f"{name} is a page of HTML or XML; open it in a spreadsheet and save it as .xlsx or CSV.")
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson") or re.match(r'\s*(\[\s*)?\{\s*["}]', text):
            found = _json(text, name)
        else:
            found = _csv(text, name, separator, names, columns)
        found.told.insert(0, told)
    if sheet is not None and not raw.startswith(b"PK"):
        raise TableError(f"{name} has no sheets; leave sheet={sheet!r} out.")
    if names is not None and found.unit != "row":
        raise TableError(f"{name} brings its own column names ({_list(found.names)}); leave names out.")
    if not found.rows:
        raise TableError(f"{name} has column names ({_list(found.names)}) and no row under them.")
    twice = sorted({name for name in found.names if name and found.names.count(name) > 1})
    if twice:
        raise TableError(f"{name} has several columns named {twice[0]!r}; give each its own name.")
    return found


def visible(text: str) -> bool:
    """Whether there is anything to see in it: neither space nor what only steers (zero-width, byte order marks)."""
    return any(unicodedata.category(c) not in ("Zs", "Zl", "Zp", "Cc", "Cf") for c in text)


def whole(text: str) -> bool:
    """Whether it has no half characters (lone surrogates), which no file can hold."""
    return not re.search("[\ud800-\udfff]", text)


def _list(names) -> str:
    return ", ".join(map(repr, names))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], 3)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?" if near else f"the path is read from {Path.cwd().name!r}."
        )
        raise TableError(f"There is no file {str(path)!r}; {hint}") from None
    except OSError as error:
        raise TableError(f"{path.name} cannot be read ({error.strerror}); pass the path of a file.") from None


# --- encodings ---


def _decode(raw: bytes, encoding: str | None, name: str) -> tuple[str, str]:
    """(text, how it was decoded). Without `encoding`: UTF-8, what a byte order mark says, or the one guess that stands alone."""
    bom = next((codec for mark, codec in BOMS.items() if raw.startswith(mark)), None)
    if encoding or bom:
        try:
            return raw.decode(encoding or bom).removeprefix("\ufeff"), encoding or bom.removesuffix("-sig").upper()
        except LookupError:
            raise TableError(f"Python knows no encoding {encoding!r}; try 'utf-8', 'cp1252' or 'utf-16'.") from None
        except UnicodeError as error:
            where = f"byte {error.start + 1}" if isinstance(error, UnicodeDecodeError) else str(error)
            raise TableError(
                f"{name} is not {encoding or bom} ({where}); leave encoding out to have it found, or name another."
            ) from None
    if raw.isascii() and re.search(rb"\x1b[$(]", raw):
        raise TableError(f"{name} seems to be ISO-2022, an old encoding of e-mail; pass encoding='iso2022_jp' if so.")
    if 0 in raw:  # in UTF-16, separators and line ends have a zero byte, always on the same side
        codec = "utf-16-le" if raw[1::2].count(0) > raw[::2].count(0) else "utf-16-be"
        try:
            text = raw.decode(codec)
            if "\0" not in text and text.count("\n") + text.count("\r") > 1:
                return text, codec.upper()
        except UnicodeDecodeError:
            pass
        raise TableError(f"{name} is no text (it holds zero bytes). The course reads {FORMATS}.")
    try:
        return raw.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError as error:
        # Most of it is UTF-8: another encoding would read all of it, and every letter beyond ASCII would come out wrong.
        broken = len(raw) - len(raw.decode("utf-8", "ignore").encode())
        if 10 * broken <= sum(byte > 127 for byte in raw):
            line = raw[: error.start].count(b"\n") + 1
            raise TableError(
                f"{name} is UTF-8 except in line {line}, where bytes are damaged or in another encoding; mend that line "
                "and save the file as UTF-8."
            ) from None
    return _guess(raw, name)


def _guess(raw: bytes, name: str) -> tuple[str, str]:
    """(text, told) in the only old encoding that makes words of these bytes; TableError if there are several, or none."""
    from charset_normalizer import from_bytes

    lines, seen = [], set()
    for line in raw.split(b"\n"):  # some lines, and all with a byte that is new: no letter escapes the comparison
        high = set() if line.isascii() else {byte for byte in line if byte > 127}
        if high - seen or (high and len(lines) < 300):
            lines.append(line)
            seen |= high
    sample = b"\n".join(lines)
    looks = {}  # of what the sample reads as: (broken words, charset_normalizer's measure of mess, encoding)
    for match in from_bytes(sample, cp_isolation=list(GUESSED)):
        same = {match.encoding, *match.could_be_from_charset}  # they read the sample alike
        if codec := next((codec for codec in GUESSED if codec in same and _decodes(raw, codec)), None):
            text = sample.decode(codec)
            if not re.search("[\x80-\x9f]", text):  # no text has these control characters
                looks.setdefault(text, (_broken_words(text), match.chaos, codec))
    beyond = sum(byte > 127 for byte in sample)
    fewest, least, _ = min(looks.values(), default=(beyond, 0, ""))
    # In trials with 40 languages and encodings, rivals nearer than 0.05 were both right and wrong; short Thai looks a mess to it.
    near = {codec: least + (0.2 if codec == "cp874" else 0.05) for codec in GUESSED}
    found = {
        codec: text
        for text, (broken, chaos, codec) in looks.items()
        if broken <= fewest + 0.005 * beyond and chaos < near[codec]
    }
    words = {word for text in found.values() for word in re.findall(r"[^\W\d_]+", text) if not word.isascii()}
    letters = {c for word in words for c in word if not c.isascii()}
    # A few letters in a few words prove nothing, but for what Word writes into English: It’s “so” – really…
    proven = len(letters) * len(words) >= 40 or all(
        c.isascii() or c in "’‘“”–—…" for text in found.values() for c in text
    )
    if not found or fewest > 0.02 * beyond:
        raise TableError(
            f"{name} is not UTF-8, and no usual encoding makes words of it; save it as UTF-8, or pass encoding='…' (such as "
            "'cp1252', 'mac_roman', 'cp850', 'cp1251', 'shift_jis' or 'gb18030')."
        )
    if len(found) == 1 and proven:
        ((codec, text),) = found.items()
        word = next(word for word in text.split() if not word.isascii())
        return raw.decode(codec), f"{codec}, guessed: it makes {word[:30]!r} (if that is wrong, pass encoding=)"
    codecs = sorted(found, key=GUESSED.index)[:3]
    rows = list(zip(*(found[codec].split() for codec in codecs), strict=False))
    words = max(rows, key=lambda row: (len(set(row)), not row[0].isascii()), default=codecs)
    seen = ", ".join(f"{codec} reads {word[:30]!r}" for codec, word in zip(codecs, words, strict=True))
    raise TableError(
        f"{name} is not UTF-8, and its encoding cannot be told: {seen}. Pass the right one, such as encoding={codecs[0]!r}, "
        "or save the file as UTF-8."
    )


def _decodes(raw: bytes, codec: str) -> bool:
    try:
        return bool(raw.decode(codec))
    except UnicodeDecodeError:
        return False


def _broken_words(text: str) -> int:
    """How often letters stand as in no word: beside a sign inside it, among another alphabet, a capital after a small one."""
    scripts = {c: _script(c) for c in set(text)}
    counts = Counter(filter(None, map(scripts.get, text)))
    main = max(counts, key=counts.get, default="")
    broken = 0
    for a, b, c in zip(" " + text, text, text[1:] + " ", strict=False):
        if b.isascii():
            broken += b.isdigit() and not a.isascii() and a.isupper()  # a currency's sign, misread
        elif scripts[b] == "RARE":
            broken += 1
        elif unicodedata.category(b) == "Mn":
            broken += unicodedata.category(a)[0] not in "LM"  # a mark on nothing
        elif scripts[b] in ALPHABETS:
            final = b in "ςךםןףץ" and scripts.get(c) == scripts[b]  # these only end words
            broken += (scripts[b] != main and main in ALPHABETS) or final or (a.islower() and b.isupper())
        elif scripts.get(a) in ("LATIN", "CYRILLIC", "GREEK"):
            inside = c.isalpha() and unicodedata.category(b)[0] in "SNP" and b not in "’‘–—…·"
            broken += inside or b in "‚„ˆ‰†‡¤"
        else:
            broken += b == "¤"
    return broken


ALPHABETS = ("LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC")


def _script(c: str) -> str:
    """The alphabet of a letter, "CJK", "HANGUL", "RARE" for signs of theirs that hardly any text has, or ""."""
    kind = unicodedata.name(c, "").split(" ")[0]
    usual = {"HANGUL": ["euc_kr"], "CJK": ["gb2312", "big5", "shift_jis"], "HALFWIDTH": []}.get(kind)
    if usual is not None:
        return kind if any(_encodes(c, codec) for codec in usual) else "RARE"
    return kind if kind in ALPHABETS and c.isalpha() else ""


def _encodes(c: str, codec: str) -> bool:
    try:
        return len(c.encode(codec)) == 2  # euc_kr composes the rare ones of more
    except UnicodeEncodeError:
        return False


# --- formats ---


def _grid(records: list[list[str]], name: str, names, told: list[str]) -> Sheet:
    """The Sheet of records numbered from 1: the first with anything in it is the header, unless `names` are given."""
    while records and not any(cell.strip() for cell in records[-1]):
        records.pop()  # a spreadsheet's formatted rows below the last
    start = next((number for number, cells in enumerate(records) if any(c.strip() for c in cells)), 0)
    if not records:
        raise TableError(f"{name} is empty; it needs a line of column names and rows under it.")
    header = list(names) if names is not None else [cell.strip().strip("\ufeff") for cell in records[start]]
    start += names is None
    rows = {number: cells for number, cells in enumerate(records[start:], start=start + 1)}
    while header and not header[-1] and not any("".join(cells[len(header) - 1 :]).strip() for cells in rows.values()):
        header.pop()  # a separator at the end of every line
    wrong = {}
    for number, cells in rows.items():
        if not any(cell.strip() for cell in cells):
            cells = [""] * len(header)
        elif not any(cell.strip() for cell in cells[len(header) :]):
            cells = cells[: len(header)]
        if len(cells) != len(header):
            wrong[number] = cells
        rows[number] = cells
    if wrong:
        number, cells = next(iter(wrong.items()))
        others = f" ({len(wrong) - 1:,} more rows are like that)" if len(wrong) > 1 else ""
        what, kind = ("a line break", "fewer") if len(cells) < len(header) else ("the separator", "more")
        raise TableError(
            f"{name}, row {number} has {kind} fields ({len(cells)}) than there are names ({len(header)}: {_list(header)}){others}: "
            f"{' | '.join(cells)[:120]!r}. A text with {what} in it must stand in double quotes: save the file anew from a spreadsheet.",
            wrong,
        )
    return Sheet(name, header, rows, told=told)


def _csv(text: str, name: str, separator: str | None, names, columns: int) -> Sheet:
    """csv, not pandas: it shows what each line holds, where pandas fills up short ones and cuts or shifts long ones."""
    if told := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):  # Excel's own hint, which it does not show as a row
        separator, text = separator or told[1], text[told.end() :]
    if separator is None:
        possible = {}
        for candidate in SEPARATORS:
            records, _ = _records(text, candidate, name, strict=False)
            width = len(names) if names is not None else len(next((r for r in records if any(r)), []))
            if width > 1 and (fitting := sum(len(record) == width for record in records)):
                possible[candidate] = fitting
        if not possible and columns > 1:
            first = next(line for line in text.splitlines() if line.strip())
            raise TableError(
                f"{name} has one column ({first[:60]!r}): no {', '.join(SEPARATORS.values())} parts its names. A table needs a "
                "column of texts and one of labels; pass separator='…' if another character parts them."
            )
        separator = max(possible, key=possible.get, default=",")
    records, quotes = _records(text, separator, name)
    return _grid(records, name, names, [f"{SEPARATORS.get(separator, repr(separator))} between fields{quotes}"])


def _records(text: str, separator: str, name: str, strict: bool = True) -> tuple[list[list[str]], str]:
    """(fields of every row, what to tell). strict: TableError for quotation marks that do not pair; in TSV they may be signs."""
    records, line = [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
    try:
        for record in reader:
            records.append(record)
            line = reader.line_num
    except csv.Error:
        if separator == "\t":
            plain = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=csv.QUOTE_NONE))
            if len({len(record) for record in plain if record}) == 1:
                return plain, " (quotation marks belong to the texts)"
        if strict:
            number, near = len(records) + 1, re.split(r"\r\n?|\n", text)[line][:80]
            raise TableError(
                f'{name}, row {number}: a quotation mark does not pair, near {near!r}. A field that begins with " must end '
                'with ", and each " inside it is written twice: save the file anew from a spreadsheet.',
                [number],
            ) from None
    return records, ""


def _xlsx(raw: bytes, name: str, sheet: str | None, names) -> Sheet:
    try:
        inside = zipfile.ZipFile(io.BytesIO(raw)).namelist()
    except zipfile.BadZipFile:
        raise TableError(f"{name} is damaged (a zip file cut short); copy or download it again.") from None
    if "xl/workbook.xml" not in inside:
        raise TableError(
            f"{name} is an archive or a file of another program (.ods, .numbers, .xlsb, .docx, .zip); save the table as .xlsx or CSV."
        )
    import openpyxl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forms and styles that openpyxl does not know
        try:
            book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
            filled = {}
            for page in book.worksheets:
                page.reset_dimensions()  # some programs write wrong ones
                grid = [[_shown(cell) for cell in row] for row in page.iter_rows()]
                if any(any(row) for row in grid):
                    filled[page.title] = grid
        except Exception as error:  # whatever a damaged part of it makes openpyxl raise
            raise TableError(
                f"{name} cannot be opened ({error}); open it in a spreadsheet and save it anew."
            ) from error
    if sheet is None and len(filled) == 1:
        sheet = next(iter(filled))
    if sheet not in filled:
        given = (
            f"has no sheet {sheet!r} with anything in it"
            if sheet is not None
            else f"has {len(filled)} sheets with contents"
        )
        raise TableError(f"{name} {given}; " + (f"pass sheet= one of {_list(filled)}." if filled else "fill one in."))
    grid = filled[sheet]
    width = max(map(len, grid))
    grid = [row + [""] * (width - len(row)) for row in grid]
    return _grid(grid, name, names, [f"sheet {sheet!r}"])


def _shown(cell) -> str:
    """A cell as the spreadsheet shows it, dates as 2026-01-31; an error such as #N/A, or an empty cell, is no text."""
    value = cell.value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or cell.data_type == "e":
        return ""
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    if isinstance(value, int) and not isinstance(value, bool) and re.fullmatch("0+", cell.number_format or ""):
        return str(value).zfill(len(cell.number_format))  # 007, kept as the number 7
    return _word(value)


def _parquet(raw: bytes, name: str) -> Sheet:
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(raw))
        columns = [column.to_pylist() for column in table.columns]
    except Exception as error:  # whatever a damaged part of it makes pyarrow raise
        raise TableError(f"{name} cannot be read as Parquet ({str(error).splitlines()[0]}); write it anew.") from error
    rows = {number: [_word(value) for value in row] for number, row in enumerate(zip(*columns, strict=True), start=1)}
    return Sheet(name, table.column_names, rows, "record", ["Parquet"])


def _json(text: str, name: str) -> Sheet:
    """A list of objects, or one object a line; numbers stay as they are written."""
    listed = text.lstrip().startswith("[")
    unit = "object" if listed else "line"
    found = {}
    if listed:
        found = dict(enumerate(_parsed(text, name), start=1))
    else:
        for number, line in enumerate(text.split("\n"), start=1):  # and nowhere else: U+2028 may stand in a text
            if line.strip():
                found[number] = _parsed(line, f"{name}, line {number}")
    for number, row in found.items():
        if not isinstance(row, dict):
            raise TableError(
                f'{name}, {unit} {number} is {str(row)[:60]!r}, and not an object such as {{"text": …, "label": …}}.'
            )
    names = list(dict.fromkeys(key for row in found.values() for key in row))
    written = {True: "true", False: "false"}
    rows = {}
    for number, row in found.items():
        cells = [row.get(key) for key in names]
        rows[number] = [written[cell] if isinstance(cell, bool) else _word(cell) for cell in cells]
    if len(rows) == 1 and not all(isinstance(cell, str) for cell in next(iter(rows.values()))):
        raise TableError(
            f"{name} is one object that holds lists ({_list(names)}); write one object a row (pandas: to_json(path, orient='records'))."
        )
    return Sheet(name, names, rows, unit, ["JSON" if listed else "JSON Lines"])


def _parsed(text: str, where: str):
    from utils import data

    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=data._once)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{where} is not JSON ({error}); write a list of objects, or one object a line.") from None


def _word(value):
    """A value as a text, None as an empty one; what holds others (a list, a dict) stays what it is."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, (str, list, dict, tuple)) else str(value)
