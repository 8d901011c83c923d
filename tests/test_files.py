"""Files and folders are put in place whole or not at all, nothing foreign is touched, and every writer of the course goes this way."""

import base64
import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import policy
import pytest

from benchmarks import record
from tools import handout, lessons, links, pins, stamp
from utils import ROOT, assets, files

posix = pytest.mark.skipif(os.name == "nt", reason="modes, links and pipes of POSIX")
TOKENS = [f"{n:024x}" for n in range(3)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@contextlib.contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.md").write_text("old")
    return tmp_path / "a.md"


@pytest.fixture
def folder(tmp_path):
    """A folder that `replacing` wrote."""
    with files.replacing(tmp_path / "out") as new:
        (new / "part").mkdir()
        (new / "part" / "a.txt").write_text("old")
    return tmp_path / "out"


def fill(folder, content="new"):
    with files.replacing(folder) as new:
        (new / "a.txt").write_text(content)


def test_a_bare_python_can_use_it():
    code = "import sys; from utils import files; print(sorted({'torch', 'numpy', 'filelock'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a file ---


def test_a_file_is_written_as_it_is_given(tmp_path):
    path = tmp_path / "new" / "a.md"
    assert files.place_file(path, "è\n") == path.resolve() and path.read_bytes() == "è\n".encode()
    files.place_file(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n" and names(path.parent) == ["a.md"]


@posix
def test_a_new_files_mode_follows_the_umask_and_an_old_one_keeps_its_own(tmp_path):
    for value, wanted in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        with umask(value):
            assert mode(files.place_file(tmp_path / f"{value:03o}", "x")) == wanted
    for kept in (0o600, 0o755, 0o640, 0o444):
        (tmp_path / "022").chmod(kept)
        assert mode(files.place_file(tmp_path / "022", f"{kept}")) == kept


def test_what_cannot_be_encoded_writes_nothing(text):
    with pytest.raises(UnicodeEncodeError):
        files.place_file(text, "\ud800")
    assert text.read_text() == "old" and names(text.parent) == ["a.md"]


@posix
@pytest.mark.parametrize("kind", ["a folder", "a link", "a dangling link", "a pipe", "below a file"])
def test_a_target_that_is_no_file_is_refused(tmp_path, kind):
    place, victim = tmp_path / "a.md", tmp_path / "victim"
    victim.write_text("somebody's")
    {
        "a folder": place.mkdir,
        "a link": lambda: place.symlink_to(victim),
        "a dangling link": lambda: place.symlink_to("nowhere"),
        "a pipe": lambda: os.mkfifo(place),
        "below a file": place.touch,
    }[kind]()
    before = names(tmp_path)
    with pytest.raises(files.Refused, match=rf"a\.md(/b)? (is {kind.replace('dangling ', '')}|cannot be written)"):
        files.place_file(place / "b" if kind == "below a file" else place, "new")
    assert names(tmp_path) == before and victim.read_text() == "somebody's"


@posix
def test_a_device_is_refused():
    with pytest.raises(files.Refused, match="/dev/null is a device"):
        files.place_file("/dev/null", "new")


@posix
@pytest.mark.parametrize("aside", [".a.md.{}.tmp", ".a.md.lock"])
def test_a_planted_link_is_not_followed(text, tmp_path, monkeypatch, aside):
    (tmp_path / "victim").write_text("somebody's")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 8)
    monkeypatch.setattr(files.time, "time_ns", lambda: 0)
    (tmp_path / aside.format("0" * 24)).symlink_to("victim")
    with pytest.raises(OSError):
        files.place_file(text, "new")
    assert (tmp_path / "victim").read_text() == "somebody's" and text.read_text() == "old"


@pytest.mark.parametrize("was", ["old", b"old", ...])
def test_a_file_as_it_was_read_is_replaced(text, was):
    files.place_file(text, "new", was=was)
    assert text.read_text() == "new"


@pytest.mark.parametrize("line", [b"one\r\ntwo\r\n", b"one\ntwo\n"])
def test_line_endings_are_no_edit(text, line):
    text.write_bytes(line)
    files.place_file(text, "new", was=text.read_text(encoding="utf-8"))
    assert text.read_text() == "new"


EDITS = {
    "another text": ("old", lambda path: path.write_text("mine")),
    "other bytes": (b"old", lambda path: path.write_bytes(b"ol")),
    "no longer a text": ("old", lambda path: path.write_bytes(b"\xff")),
    "removed": ("old", lambda path: path.unlink()),
    "appeared": (None, lambda path: path.write_bytes(b"\xff")),
    "appeared, empty": (None, lambda path: path.write_text("")),
}


@pytest.mark.parametrize(("was", "edit"), EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("late", [False, True])
def test_an_edit_saved_meanwhile_stays(text, monkeypatch, was, edit, late):
    """Also one that comes when the new content is already on its way."""
    if late and was is not None:
        sync = files._sync
        monkeypatch.setattr(files, "_sync", lambda path: (edit(text), sync(path), monkeypatch.undo()))
    else:
        edit(text)
    with pytest.raises(files.Refused, match=r"a\.md was changed while its new content was made: the change was kept"):
        files.place_file(text, "new", was=was)
    expected = text.read_bytes() if text.exists() else None
    assert expected != b"new" and set(names(text.parent)) <= {"a.md"}


def test_nothing_there_may_be_what_was_read(tmp_path):
    assert files.place_file(tmp_path / "a", "new", was=None).read_text() == "new"


def test_600_writes_of_one_file_at_once(text, monkeypatch):
    monkeypatch.setattr(files, "_sync", lambda path: None)  # which takes a disk long
    failed = []

    def write(thread):
        for n in range(75):
            try:
                files.place_file(text, f"{thread} {n}\n" * 100)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(set(text.read_text().splitlines())) == 1 and names(text.parent) == ["a.md"]


# --- a folder ---


@posix
def test_modes_of_a_folder_and_its_files(tmp_path):
    def fill(new):
        (new / "private.safetensors").touch(mode=0o600)
        (new / "part").mkdir()
        (new / "part" / "b").touch()

    for value, folder, file in ((0o022, 0o755, 0o644), (0o077, 0o700, 0o600)):
        with umask(value), files.replacing(tmp_path / f"{value}") as new:
            fill(new)
        assert [mode(tmp_path / f"{value}" / part) for part in (".", "private.safetensors", "part/b")] == [
            folder,
            file,
            file,
        ]
    with umask(0o022), files.replacing(tmp_path / f"{0o077}") as new:
        fill(new)
    assert [mode(tmp_path / f"{0o077}" / part) for part in (".", "private.safetensors")] == [0o700, 0o600]


def test_an_absent_or_empty_folder_needs_no_reason(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent", "far/below"):
        with files.replacing(tmp_path / name, lambda path: pytest.fail("nothing to look at")) as new:
            (new / "a").touch()
        assert names(tmp_path / name) == ["a"]


def test_a_reason_is_told_and_asked_for_again_at_the_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    for told, said in ((False, "it holds what the course did not write"), ("it is green", "it is green")):
        with (
            pytest.raises(files.Refused, match=f"a is not replaced: {said}. Choose another folder"),
            files.replacing(tmp_path / "a", lambda path, told=told: told),
        ):
            pytest.fail("it was filled")
    looks = iter([True, True, "it has changed"])
    with (
        pytest.raises(files.Refused, match="it has changed"),
        files.replacing(tmp_path / "a", lambda path: next(looks)),
    ):
        next(looks)
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["mine"]


def test_a_folder_of_ours_is_replaced_until_somebody_edits_it_or_adds_to_it(folder):
    (folder / ".DS_Store").touch()
    (folder / "part" / ".ipynb_checkpoints").mkdir()
    (folder / "part" / ".ipynb_checkpoints" / "a-checkpoint.txt").touch()
    fill(folder)
    assert names(folder) == [files.SEAL, "a.txt"]
    (folder / "a.txt").unlink()
    fill(folder)
    (folder / "a.txt").write_text("edited")
    with pytest.raises(files.Refused, match=r"out is not replaced: a\.txt in it was edited"):
        fill(folder)
    (folder / "a.txt").write_text("new")
    fill(folder)
    for stranger in ("b.txt", ".hidden", "sub/c.txt"):
        (folder / stranger).parent.mkdir(exist_ok=True)
        (folder / stranger).write_text("mine")
        with pytest.raises(files.Refused, match=rf"it holds {stranger}, which was not written by this command"):
            fill(folder)
        assert (folder / stranger).read_text() == "mine"
        (folder / stranger).unlink()
    (folder / files.SEAL).write_text("[" * 10**5)
    with pytest.raises(files.Refused, match="it holds"):
        fill(folder)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("a bug")])
def test_an_error_while_it_is_filled_leaves_all_as_it_was(folder, error):
    with pytest.raises(type(error)), files.replacing(folder) as new:
        (new / "half").touch()
        raise error
    assert names(folder.parent) == ["out"] and (folder / "part" / "a.txt").read_text() == "old"


@pytest.mark.parametrize("name", ["ä" * 120, "x" * 250, "a b", "-rf", "#", "a.tmp"])
def test_odd_and_long_names(tmp_path, name):
    for _ in range(2):
        files.place_file(tmp_path / "f" / name, "x")
        fill(tmp_path / "d" / name)
    assert names(tmp_path / "f") == names(tmp_path / "d") == [name]


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_live_one_has_is_not(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from utils import files
with files.replacing({str(tmp_path / "out")!r}) as new:
    (new / "half").touch()
    print("here", flush=True)
    sys.stdin.read()
"""
    writers = [subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)]
    try:
        assert writers[0].stdout.readline() == "here\n"
        with (
            pytest.raises(files.Refused, match="out is being written by another process: wait"),
            files.locked(tmp_path / "out", wait=0.1),
        ):
            pytest.fail("two at once")
        assert len(names(tmp_path)) == 2  # the lock, and the aside
    finally:
        writers[0].kill()
        writers[0].wait()
    (tmp_path / ".out.mine.tmp").touch()
    assert len(names(tmp_path)) == 3
    fill(tmp_path / "out")
    assert names(tmp_path) == [".out.mine.tmp", "out"]


# --- after a crash between two renames ---


def aside(folder, token, kind, content=None):
    path = folder.with_name(f".{folder.name}.{token}.{kind}")
    path.mkdir()
    (path / "a.txt").write_text(content or kind)
    return path


def test_recover_brings_back_the_newest_former_folder_and_never_a_half_new_one(tmp_path):
    out = tmp_path / "out"
    assert files.recover(out) == out and names(tmp_path) == []
    half, older, newer = (
        aside(out, TOKENS[2], "tmp"),
        aside(out, TOKENS[0], "old", "older"),
        aside(out, TOKENS[1], "old", "newer"),
    )
    for foreign in (".out.old", ".out.123.old", ".outer." + TOKENS[0] + ".old"):
        (tmp_path / foreign).mkdir()
    files.recover(out)
    assert (out / "a.txt").read_text() == "newer" and not (half.exists() or older.exists() or newer.exists())
    assert len(names(tmp_path)) == 4


def test_recover_touches_nothing_where_a_folder_is(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    left = [aside(out, TOKENS[0], "old"), aside(out, TOKENS[1], "tmp")]
    files.recover(out)
    assert names(out) == [] and all(path.exists() for path in left)


def test_a_writer_recovers_before_it_writes(tmp_path):
    out = tmp_path / "out"
    aside(out, TOKENS[0], "old")
    with pytest.raises(ZeroDivisionError), files.replacing(out, lambda path: True):
        1 / 0  # noqa: B018
    assert names(tmp_path) == ["out"] and names(out) == ["a.txt"]


def test_read_whole_reads_again_where_a_writer_came_in_between(folder):
    def read(path, seen=[]):  # noqa: B006
        seen.append((path / files.SEAL).read_text())
        if len(seen) == 1:
            fill(path)
        if len(seen) == 2:
            fill(path, "newer")
            raise FileNotFoundError("the file that was there a moment ago")
        return len(seen)

    assert files.read_whole(folder, read) == 3
    with pytest.raises(ZeroDivisionError):
        files.read_whole(folder, lambda path: 1 / 0)
    with pytest.raises(FileNotFoundError):
        files.read_whole(folder / "none", lambda path: (path / "a").read_text())


def test_keep_renames_to_a_free_name(tmp_path):
    for n in (1, 2):
        (tmp_path / "a").write_text(f"{n}")
        assert files.keep(tmp_path / "a").name == f"a.kept-{n}"
    assert (tmp_path / "a.kept-1").read_text() == "1" and names(tmp_path) == ["a.kept-1", "a.kept-2"]


# --- systems and disks ---


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's own call")
def test_linux_exchanges_in_one_step(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").touch()
    assert files._exchange(tmp_path / "a", tmp_path / "b") and names(tmp_path / "b") == ["x"]
    assert not files._exchange(tmp_path / "a", tmp_path / "none")


class Library:
    """Stands for a system's C library; `answer` is what its call returns, or None where it has no such call."""

    def __init__(self, system, answer=0):
        self.calls, self.answer = [], answer
        if answer is not None:
            setattr(self, "renameat2" if system == "linux" else "renamex_np", self.call)

    def call(self, *arguments):
        self.calls.append(arguments)
        if self.answer == 0:
            one, other = (Path(os.fsdecode(each)) for each in arguments if isinstance(each, bytes))
            one.rename(one.with_name("between"))
            other.rename(one)
            one.with_name("between").rename(other)
        return self.answer


@pytest.mark.parametrize("answer", [0, -1, None], ids=["can", "refuses", "has no such call"])
@pytest.mark.parametrize(("system", "flag"), [("linux", 2), ("darwin", 2), ("win32", None)])
def test_each_system_swaps_as_it_can(folder, monkeypatch, system, flag, answer):
    """renamex_np and Windows' way stand here as the manuals have them; they were not run on those systems."""
    import ctypes

    library = Library(system, answer)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(files, "_SYSTEM", system)
    fill(folder)
    assert (folder / "a.txt").read_text() == "new" and names(folder.parent) == ["out"]
    assert [call[-1] for call in library.calls] == ([flag] if flag and answer is not None else [])


def test_a_swap_of_two_renames_that_fails_puts_the_old_one_back(folder, monkeypatch):
    real = os.replace

    def replace(source, target):
        if Path(target) == folder and Path(source).name == "new":
            raise OSError(errno.ENOSPC, "full")
        real(source, target)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(OSError, match="full"):
        fill(folder)
    assert names(folder.parent) == ["out"] and (folder / "part" / "a.txt").read_text() == "old"


def test_windows_says_that_a_file_is_open(text, folder, monkeypatch):
    """A stand-in for Windows, whose os.replace refuses to replace what is open. It was not run there."""

    def replace(source, target):
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(files, "_SYSTEM", "win32")
    monkeypatch.setattr(files.os, "replace", replace)
    for work in (lambda: files.place_file(text, "new"), lambda: fill(folder)):
        with pytest.raises(
            files.Refused, match=r"cannot be replaced, for Windows says that a program has it open: close it"
        ):
            work()
    monkeypatch.undo()
    assert text.read_text() == "old" and (folder / "part" / "a.txt").read_text() == "old"
    assert names(text.parent) == ["a.md", "out"]


def test_elsewhere_such_an_error_is_the_systems_own(text, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
    with pytest.raises(PermissionError):
        files.place_file(text, "new")


class Msvcrt:
    """Stands for Windows' locks: an open file is locked by its inode."""

    LK_NBLCK = 2

    def __init__(self):
        self.locked = set()

    def locking(self, opened, how, count):
        assert (how, count) == (self.LK_NBLCK, 1)
        if os.fstat(opened).st_ino in self.locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.locked.add(os.fstat(opened).st_ino)


def test_windows_locks(tmp_path, monkeypatch):
    windows = Msvcrt()
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "msvcrt", windows, raising=False)
    with (
        files.locked(tmp_path / "a"),
        pytest.raises(files.Refused, match="by another process"),
        other_thread(tmp_path / "a"),
    ):
        pytest.fail("two at once")
    assert names(tmp_path) == []


@contextlib.contextmanager
def other_thread(target):
    """What another thread meets that wants the lock at once."""
    met = []

    def work():
        try:
            with files.locked(target, wait=0):
                met.append(None)
        except files.Refused as error:
            met.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if met[0]:
        raise met[0]
    yield


def test_a_lock_keeps_other_threads_out_and_its_own_thread_may_take_it_again(tmp_path):
    with files.locked(tmp_path / "a"):
        with files.locked(tmp_path / "a", wait=0):
            assert names(tmp_path) == [".a.lock"]
        with pytest.raises(files.Refused), other_thread(tmp_path / "a"):
            pytest.fail("two at once")
    with other_thread(tmp_path / "a"):
        assert names(tmp_path) == []


def test_a_foreign_file_that_is_named_like_a_lock_stays(text):
    foreign = text.with_name(".a.md.lock")
    foreign.write_text("mine")
    files.place_file(text, "new")
    assert text.read_text() == "new" and foreign.read_text() == "mine"


def test_what_came_in_between_is_kept_even_where_the_way_back_is_barred(folder, monkeypatch):
    real, looks = files._exchange, iter([True, True, "it holds notes.txt"])
    ways = iter([real, lambda one, other: False])
    monkeypatch.setattr(files, "_exchange", lambda one, other: next(ways)(one, other))
    with (
        pytest.raises(files.Refused, match="another program wrote into it just now"),
        files.replacing(folder, lambda path: next(looks)) as new,
    ):
        (new / "a.txt").touch()
    (kept,) = folder.parent.glob("out.kept-*")
    assert (kept / "part" / "a.txt").read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_disk_without_locks_works_and_no_aside_is_taken_for_left(text, folder, monkeypatch, code):
    def flock(*_):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    others = [aside(folder, TOKENS[0], "tmp"), aside(text, TOKENS[0], "tmp")]
    files.place_file(text, "new")
    fill(folder)
    assert text.read_text() == "new" and (folder / "a.txt").exists() and all(path.exists() for path in others)
    folder.rename(folder.with_name(f".out.{TOKENS[1]}.old"))
    assert files.recover(folder).exists()


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.ENOSPC, False), (errno.EIO, False)])
def test_a_disk_that_cannot_bring_a_file_to_safety(text, monkeypatch, code, passes):
    def fsync(_):
        raise OSError(code, "x")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with contextlib.nullcontext() if passes else pytest.raises(OSError):
        files.place_file(text, "new")
    assert text.read_text() == ("new" if passes else "old") and names(text.parent) == ["a.md"]


# --- the course's writers ---

ALLOWED = {  # (module, function): where it writes, or what it removes
    ("benchmarks/memory.py", "build_drawn"): "a temporary folder",
    ("benchmarks/record.py", "write"): "removes the unfinished record whose place the whole one has taken",
    ("tools/pins.py", "main"): "a temporary folder",
    ("tools/prefetch.py", "prefetch"): "removes a wheel of older pins, by its recorded hash",
    ("tools/prefetch.py", "_packages"): "an aside",
    ("tools/site.py", "stage"): "a temporary folder",
    ("tools/site.py", "copy_mathjax"): "an aside",
    ("utils/assets.py", "_build_sentences"): "an aside",
    ("utils/assets.py", "_build_encoder"): "an aside",
    ("utils/assets.py", "_build_decoder"): "an aside",
    ("utils/colab.py", "main"): "a temporary folder",
    ("utils/colab.py", "mend"): "only what is not there",
    ("utils/console.py", "run"): "the null device",
    ("utils/adapters.py", "save_adapter"): "an aside",
    ("utils/plots.py", "_png"): "memory",
    ("utils/plots.py", "aligned"): "memory",
}


def test_no_module_writes_in_place():
    modules = [path for part in ("utils", "tools", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    found = set()
    for module in modules:
        name = module.relative_to(ROOT).as_posix()
        if name != "utils/files.py":
            found |= {(name, function) for function, _ in policy.writers(module.read_text(encoding="utf-8"))}
    assert found == set(ALLOWED), "use utils.files"


@pytest.mark.parametrize(
    "line",
    [
        "Path(x).write_text(y)",
        "(a / b).write_bytes(y)",
        "open(p, 'w')",
        "p.open('wb')",
        "open(p, mode='a')",
        "io.open(p, 'x', encoding='utf-8')",
        "gzip.open(p, 'wt')",
        "figure.savefig(p)",
        "shutil.rmtree(p)",
        "rmtree(p)",
        "os.replace(a, b)",
        "os.rename(a, b)",
        "a.rename(b)",
        "a.replace(b)",
        "os.open(p, os.O_CREAT)",
        "json.dump(x, stream)",
        "frame.to_csv(p)",
        "frame.to_json(p)",
        "model.save_pretrained(p)",
        "save_file(state, p)",
        "torch.save(state, p)",
        "nbformat.write(notebook, p)",
        "shutil.copy(a, b)",
        "shutil.move(a, b)",
        "zipfile.ZipFile(p, 'w')",
        "archive.extractall(p)",
        "p.unlink()",
        "os.remove(p)",
        "p.touch()",
    ],
)
def test_planted_writers(line):
    assert policy.writers(f"def f():\n    {line}")[0][0] == "f"


@pytest.mark.parametrize(
    "line",
    [
        "open(p)",
        "open(p, 'rb')",
        "tarfile.open(p)",
        "p.open(encoding='utf-8')",
        "text.replace('a', 'b')",
        "dataclasses.replace(profile, lean=False)",
        "frame.rename(columns=x)",
        "copy.copy(x)",
        "files.place_file(p, x)",
        "json.dumps(x)",
        "p.read_text()",
    ],
)
def test_what_only_reads_is_no_writer(line):
    assert policy.writers(line) == []


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A copy of what the tools write into, to which they are turned."""
    root = tmp_path / "course"
    for file in (
        "README.md",
        "pyproject.toml",
        "requirements.txt",
        "docs/teaching.md",
        "docs/links.txt",
        "docs/figure.png",
    ):
        files.place_file(root / file, (ROOT / file).read_bytes())
    for path in lessons.lessons(["01", "04"]):
        files.place_file(root / "notebooks" / path.name, path.read_bytes())
    files.place_file(root / "results" / "some.json", "{}")
    for module in (lessons, links, pins):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(lessons, "NOTEBOOKS", root / "notebooks")
    monkeypatch.setattr(lessons, "BUILD", root / "build")
    monkeypatch.setattr(links, "LIST", root / "docs" / "links.txt")
    monkeypatch.setattr(record, "RESULTS", root / "results")
    return root


def made_pins(monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout="new==1\n")
    monkeypatch.setattr(pins.subprocess, "run", lambda *_, **__: done)
    pins.main()


ORIGIN = dict(values={}, date="", machine="", precision="")
RAN = lessons.Result(None, 999.0, 1.0, "cell")
WRITERS = {  # what is written: (file, how)
    "a lesson": (
        "notebooks/01_low_rank_maths.ipynb",
        lambda root, _: lessons.save(nbformat.v4.new_notebook(), root / "notebooks" / "01_low_rank_maths.ipynb"),
    ),
    "the README's minutes": ("README.md", lambda root, patch: refresh(root, patch)),
    "a laptop's minutes": ("README.md", lambda root, _: lessons.stamp_laptop(RAN, Path("01_low_rank_maths.ipynb"))),
    "the teachers' minutes": ("docs/teaching.md", lambda root, patch: refresh(root, patch)),
    "the README's figure": ("docs/figure.png", lambda root, _: lessons.save_readme_figure(with_figure())),
    "a stamp in the README": ("README.md", lambda root, _: stamp.stamp("ada/x", root)),
    "a stamp in the project": ("pyproject.toml", lambda root, _: stamp.stamp("ada/x", root)),
    "a stamp in a lesson": ("notebooks/04_roberta_sst2.ipynb", lambda root, _: stamp.stamp("ada/x", root)),
    "the links": ("docs/links.txt", lambda root, patch: (patch.setattr(links, "documents", dict), links.main([]))),
    "the pins": ("requirements.txt", lambda root, patch: made_pins(patch)),
    "a record": ("results/some.json", lambda root, _: record.write("some", dict(origin=ORIGIN, due=[], runs=[]))),
}


def refresh(root, patch):
    patch.setattr(lessons, "save", lambda *_: None)  # that is the first of the writers
    path = root / "notebooks" / "01_low_rank_maths.ipynb"
    lessons.refresh(lessons.Result(nbformat.read(path, as_version=4), 999.0, 1.0, "cell"), path, "")


def with_figure():
    image = base64.b64encode(b"a picture").decode()
    output = nbformat.v4.new_output("display_data", data={"image/png": image})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(id="four-ways", outputs=[output])])


@pytest.mark.parametrize(("file", "write"), WRITERS.values(), ids=WRITERS)
def test_each_writer_renames_a_whole_file_into_place(course, monkeypatch, file, write):
    """A second name of the old file keeps the old content: it was not written into. And where the rename fails, all stays."""
    path = course / file
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            write(course, monkeypatch)
    assert path.read_bytes() == before and names(path.parent) == [name for name in names(path.parent) if name[0] != "."]
    os.link(path, course / "witness")
    write(course, monkeypatch)
    assert path.read_bytes() != before and (course / "witness").read_bytes() == before
    assert not [path for path in course.rglob(".*")]


def outputs(monkeypatch, course, meanwhile=lambda: None, names=("01",)):
    """`make outputs` on lessons whose execution takes no time: its exit code."""

    def execute(notebook, profile, **_):
        meanwhile()
        return lessons.Result(notebook, 999.0, 1.0, "cell")

    monkeypatch.setattr(lessons, "execute", execute)
    monkeypatch.setattr(sys, "argv", ["lessons", "outputs", *names])
    return lessons.main()


def test_outputs_go_into_lesson_readme_and_teaching(course, monkeypatch, capsys):
    assert outputs(monkeypatch, course) == 0 and capsys.readouterr().err == ""
    assert "under 17" in (course / "README.md").read_text(encoding="utf-8")
    assert "under 17" in (course / "notebooks" / "01_low_rank_maths.ipynb").read_text(encoding="utf-8")


def test_an_edit_saved_while_outputs_run_is_never_overwritten(course, monkeypatch, capsys):
    path = course / "notebooks" / "01_low_rank_maths.ipynb"
    readme = (course / "README.md").read_text(encoding="utf-8")

    def edit():
        if "# 01 mine" not in path.read_text(encoding="utf-8"):
            path.write_text(path.read_text(encoding="utf-8").replace("# 01", "# 01 mine", 1), encoding="utf-8")

    assert outputs(monkeypatch, course, edit, ("01", "04")) == 1
    assert "# 01 mine" in path.read_text(encoding="utf-8") and "under 17" not in path.read_text(encoding="utf-8")
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "01_low_rank_maths.ipynb was changed while" in said and "the change was kept" in said
    )
    after = (course / "README.md").read_text(encoding="utf-8")
    assert readme != after and after.count("under 17") == 1, "the other lesson is refreshed all the same"
    assert names(course / "notebooks") == ["01_low_rank_maths.ipynb", "04_roberta_sst2.ipynb"]


def test_hidden_files_are_no_lessons(course):
    for name in (".01_low_rank_maths.ipynb", f".01_low_rank_maths.ipynb.{TOKENS[0]}.tmp", "._01_low_rank_maths.ipynb"):
        (course / "notebooks" / name).write_text('{"half')
    (course / "docs" / ".teaching.md").write_text("half")
    found = [path.name for path in lessons.lessons()]
    assert found == ["01_low_rank_maths.ipynb", "04_roberta_sst2.ipynb"]
    assert "notebooks/04_roberta_sst2.ipynb" in stamp.stamp("ada/x", course)
    from tools import site

    assert not [path for path in site.pages(course) if "/." in path]
    assert "01" in json.dumps(list(site.pages(course)))


def test_asides_are_git_ignored():
    asides = [f"docs/.x.md.{TOKENS[0]}.tmp", f"data/.adapters.{TOKENS[0]}.old", ".README.md.lock"]
    done = subprocess.run(["git", "check-ignore", *asides], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == asides


def test_an_edited_handout_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(handout, "HANDOUT", ROOT / "build" / "none")
    monkeypatch.setattr(handout.files, "replacing", lambda folder, real=files.replacing: real(tmp_path / "handout"))
    monkeypatch.setattr(handout.lessons, "lessons", lambda real=lessons.lessons: real(["01"]))
    assert handout.main() == handout.main() == 0
    (tmp_path / "handout" / "answers.md").write_text("with my notes")
    assert handout.main() == 1
    assert "answers.md in it was edited" in capsys.readouterr().err
    assert (tmp_path / "handout" / "answers.md").read_text() == "with my notes"


def test_a_recomputed_record_stays_until_the_new_one_is_whole(course, monkeypatch):
    """Killed at any moment, the former record is still there: it never moves."""
    kept = dict(origin=record.origin(dict(a=1)), due=["x"], runs=[dict(name="x")])
    record.write("some", kept)

    def run(command, env, **_):
        assert json.loads((course / "results" / "some.json").read_text()) == kept
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", env)
            assert record.resume("some", dict(a=1)) == {}
            record.write("some", dict(kept, runs=[]))
            assert record.resume("some", dict(a=1)) == dict(kept, runs=[])
        raise KeyboardInterrupt

    monkeypatch.setattr(record.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        record._recompute("some")
    assert json.loads((course / "results" / "some.json").read_text()) == kept and record.successor("some")
    assert record.resume("some", dict(a=1)) == dict(kept, runs=[])


def test_the_tried_lessons_take_the_place_of_themselves_only(tmp_path):
    import exercised

    for _ in range(2):
        exercised.main(tmp_path / "exercised")
    found = names(tmp_path / "exercised")
    assert len(found) == len(lessons.lessons())
    (tmp_path / "exercised" / "01_mine.ipynb").touch()
    with pytest.raises(files.Refused, match=r"it holds 01_mine\.ipynb"):
        exercised.main(tmp_path / "exercised")


def test_an_asset_manifest_goes_the_same_way(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    os.link(tmp_path / "manifest.json", tmp_path / "witness")
    assets._save(dict(a=1), tmp_path)
    assert (tmp_path / "witness").read_text() == "{}" and names(tmp_path) == ["manifest.json", "witness"]
