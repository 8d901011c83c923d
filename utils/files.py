"""Put a file or a folder in place, whole or not at all, and never in the place of what is not ours.

What is being written stands beside its target in a folder .NAME.TOKEN.tmp, and is renamed when it is whole. A folder that has to
step aside for a moment is .NAME.TOKEN.old: it is whole, and may come back if nothing stands in its place (`recover`). A writer
holds .NAME.lock from its first byte to its last, so whoever holds it knows that all other asides were left by killed ones.

Only the standard library here: the tools use it before there is an environment.
"""

from __future__ import annotations  # so that a Python too old for the course can be told so

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

WAIT = 60.0  # seconds for another writer of the same target
SEAL = ".files.json"  # what `replacing` writes into a folder that has no marks of its own
_SYSTEM = "linux" if sys.platform.startswith("linux") else sys.platform
_TOKEN = "[0-9a-f]{24}"
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers drop into every folder that is looked at
_held = threading.local()  # .locks: the locks of this thread, for a writer may call another


class Refused(ValueError):
    """Nothing was written; the message says why, in one sentence, and what to do."""


# --- a file ---


def place_file(path, content: str | bytes, *, was=...) -> Path:
    """Write a text (as UTF-8) or bytes to the file `path`, whole or not at all; a file that is there keeps its mode.

    was: what the caller has read there, as `read_text` or `read_bytes` gives it (None: nothing was there). Where the file is
    another one now, somebody has saved an edit meanwhile: it stays. Refused then, and where `path` is a link (it may lead to
    what is not ours), a folder, a pipe or a device. Returns the absolute path.
    """
    data = content.encode() if isinstance(content, str) else content
    path = _place(path)
    _file_there(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch(path) as aside:
        with open(aside / "new", "xb") as stream:
            stream.write(data)
        return _put(aside / "new", path, was)


def move_file(source, path) -> Path:
    """Put the finished file `source`, made on the same disk, in the place of `path`, as `place_file` does."""
    path = _place(path)
    _file_there(path)
    with locked(path):
        return _put(source, path, ...)


def _put(new, path: Path, was) -> Path:
    there = _file_there(path)  # a second look: time has passed
    if there:
        with suppress(AttributeError, OSError):  # no owners on Windows; and one may only give away what is one's own
            os.chown(new, there.st_uid, there.st_gid)
        os.chmod(new, stat.S_IMODE(there.st_mode))
    _sync(new)
    if was is not ... and _read(path, like=was) != was:
        raise Refused(
            f"{path} was changed while its new content was made: the change was kept. Run the same once more."
        )
    _rename(new, path)
    _sync(path.parent)
    return path


def _file_there(path: Path):
    """The status of the file `path`, None where nothing is. Refused where it is no plain file."""
    there = _status(path)
    if there and not stat.S_ISREG(there.st_mode):
        raise Refused(
            f"{path} is {_kind(there)}, and a file is to be written there: move it away, or choose another name."
        )
    return there


def _read(path: Path, like):
    if not os.path.lexists(path):
        return None
    return path.read_bytes() if isinstance(like, bytes) else path.read_text(encoding="utf-8", errors="surrogateescape")


# --- a folder ---


@contextmanager
def replacing(folder, ours=None):
    """`with replacing(folder) as new:` fill the empty folder `new`; at the end it is in place, or on any error all is as it was.

    ours(path): True, or a reason why the folder at `path` may not be replaced. One that is absent or empty always may be.
    Without `ours` the folder gets a list of what was written, and is replaced as long as it holds nothing else and nothing
    edited. Refused, before anything is written: what is not ours; a file, a link; the working folder, home, or what they lie in.
    """
    ours, unmarked = ours or _as_sealed, ours is None
    target = _place(folder)
    _replaceable(target, ours)
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch(target) as aside:
        new = aside / "new"
        new.mkdir()
        if there := _status(target):
            new.chmod(stat.S_IMODE(there.st_mode) | stat.S_IRWXU)
        yield new
        if unmarked:
            (new / SEAL).write_text(json.dumps(_hashes(new), indent=1) + "\n", encoding="utf-8")
        _settle(new)
        _replaceable(target, ours)  # a second look: time has passed
        _swap(new, target, ours)
        _sync(target.parent)


def recover(folder) -> Path:
    """The absolute path of `folder`, to be called before it is read: puts the former one back if a killed writer left nothing there."""
    target = _place(folder)
    if not os.path.lexists(target) and _asides(target, "old"):
        with suppress(OSError), locked(target):  # who takes the lock tidies up
            pass
    return target


def read_whole(folder, read):
    """What `read(folder)` gives, all of it from one state of the folder: it is called again where a writer came in between."""
    while True:
        before = _state(recover(folder))
        try:
            found = read(folder)
        except Exception:
            if _state(recover(folder)) == before:
                raise
        else:
            if _state(folder) == before:
                return found


def keep(path) -> Path:
    """Rename `path`, whatever it is, to a free name beside it, so that its place can be taken and nothing is lost."""
    path = _place(path)
    with locked(path):
        free = next(p for n in count(1) if not os.path.lexists(p := path.with_name(f"{path.name}.kept-{n}")))
        _rename(path, free)
    return free


def strangers(folder, known):
    """Yield what lies in `folder` (by its path in it) and is not known: known(path) says whether the plain file is one of ours.

    Links and devices are always strangers. What file managers drop, Jupyter's copies of known files and asides are not.
    """
    aside = re.compile(rf"\..+\.{_TOKEN}\.(tmp|old)")
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = sorted(name for name in folders if name not in linked and not aside.fullmatch(name))
        for name in sorted(linked + names):
            plain = stat.S_ISREG(os.lstat(os.path.join(place, name)).st_mode)
            if not (plain and (name in _LITTER or known((here / name).as_posix()) or known(_origin(here, name)))):
                yield (here / name).as_posix()


def _origin(here: Path, name: str) -> str:
    """The file of which this is Jupyter's copy, macOS's second half, or the lock."""
    if here.name == ".ipynb_checkpoints":
        return (here.parent / re.sub(r"-checkpoint(?=\.\w+$)", "", name)).as_posix()
    return (here / re.sub(r"^\.(?:_(.+)|(.+)\.lock)$", lambda match: match[1] or match[2], name)).as_posix()


def _as_sealed(folder: Path):
    """Whether a folder holds only what its list names, nothing of it edited; else why not."""
    listed = read_json(folder / SEAL)
    listed = listed if isinstance(listed, dict) else {}
    if stranger := next(strangers(folder, {SEAL, *listed}.__contains__), ""):
        return f"it holds {stranger}, which was not written by this command"
    there = [name for name in sorted(listed) if (folder / name).is_file()]
    return next((f"{name} in it was edited" for name in there if sha256(folder / name) != listed[name]), True)


def _hashes(folder: Path) -> dict:
    """{path in the folder: sha256} of all its files."""
    files = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def read_json(path):
    """What a JSON file says; None where there is none, or none that can be read. A pipe is not waited for."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8")) if os.path.isfile(path) else None
    except (OSError, ValueError, RecursionError):
        return None


def sha256(file) -> str:
    """The hash of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replaceable(target: Path, ours) -> None:
    """Refused, by one sentence, where the folder `target` must not be replaced."""
    if why := read_whole(target, lambda folder: _why_not(folder, ours)):  # another writer may just be at it
        raise Refused(
            f"{target} is not replaced: {why}. Choose another folder, or move what is there; nothing was changed."
        )


def _why_not(target: Path, ours) -> str:
    there = _status(target)
    if there is None:
        return ""
    if not stat.S_ISDIR(there.st_mode):
        return f"it is {_kind(there)}"
    for place, what in ((Path.cwd, "the working folder"), (Path.home, "your home folder")):
        with suppress(OSError, RuntimeError):  # there is no home, or no such folder
            if any(os.path.samestat(there, os.stat(part)) for part in (place(), *place().parents)):
                return f"it is, or holds, {what}"
    if os.path.ismount(target):
        return "a disk is mounted there"
    return _foreign(target, ours)


def _foreign(folder: Path, ours) -> str:
    """Why what is in the folder is not ours; "" where it is, or nothing is in it."""
    if not os.listdir(folder):
        return ""
    told = ours(folder)
    return "" if told is True else told or "it holds what the course did not write"


def _settle(folder: Path) -> None:
    """Give the files the folder's readers (safetensors makes its own private), and bring all of it to the disk."""
    readers = stat.S_IMODE(os.stat(folder).st_mode) & 0o666
    for place, _, names in os.walk(folder):
        for file in (os.path.join(place, name) for name in names):
            if not os.path.islink(file):
                os.chmod(file, readers)
                _sync(file)
        _sync(place)


def _swap(new: Path, target: Path, ours) -> None:
    """Put the folder `new` in the place of `target`, whose former content then stands where `new` stood."""
    if not os.path.lexists(target):
        _rename(new, target)
        return
    came = f"{target} is not replaced: another program wrote into it just now ({{}}). Nothing of it was changed."
    if _exchange(new, target):
        if why := _foreign(new, ours):
            if not _exchange(new, target):  # though it went a moment ago: what is not ours must not go with the aside
                os.replace(new, target.with_name(f"{target.name}.kept-{secrets.token_hex(4)}"))
            raise Refused(came.format(why))
        return
    old = _beside(target, "old")
    try:
        _rename(target, old)
        if why := _foreign(old, ours):
            raise Refused(came.format(why))
        _rename(new, target)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(target):
            os.replace(old, target)
        raise
    with suppress(OSError):  # Windows: a reader has a file open; the next writer tidies up
        os.replace(old, new)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step. False where the system or the disk's format cannot: the course then renames twice."""
    if _SYSTEM not in ("linux", "darwin"):
        return False
    names = [os.fsencode(path) for path in (one, other)]
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        if _SYSTEM == "linux":
            return libc.renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
        return libc.renamex_np(*names, 2) == 0  # RENAME_SWAP; tested with a stand-in, not run on macOS
    except (ImportError, AttributeError, OSError):  # a Python without ctypes, an old C library
        return False


# --- what both share ---


@contextmanager
def scratch(target, wait: float = WAIT):
    """Hold the lock of `target` and yield a fresh private folder beside it, which is removed at the end."""
    target = _place(target)
    with locked(target, wait):
        aside = _beside(target, "tmp")
        try:
            aside.mkdir(mode=0o700)
            yield aside
        finally:
            _discard(aside)


@contextmanager
def locked(target, wait: float = WAIT):
    """One writer at a time for `target`, in all threads and processes; who comes first tidies up what killed ones left.

    Refused after `wait` seconds. Where the disk's format knows no locks, nobody waits, and asides stay.
    """
    target = _place(target)
    path = _beside(target, "lock")
    mine = _held.__dict__.setdefault("locks", set())
    if path in mine:
        yield
        return
    lock, alone = _take(path, target, wait)
    try:
        mine.add(path)
        _tidy(target, alone)
        yield
    finally:
        mine.discard(path)
        try:
            if fcntl:  # while it is held: who waits for it sees that it is gone, and makes a new one
                _remove(path)
        finally:
            os.close(lock)
        if not fcntl:  # Windows deletes no file that is open, here or in another process
            _remove(path)


def _remove(lock: Path) -> None:
    """Delete a lock file, as far as that goes: ours are empty."""
    with suppress(OSError):
        if os.lstat(lock).st_size == 0:
            os.unlink(lock)


def _take(path: Path, target: Path, wait: float) -> tuple[int, bool]:
    """(the open lock file, whether it keeps others out)."""
    until = time.monotonic() + wait
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            alone = _lock(lock)
            if alone is None:
                return lock, False
            with suppress(FileNotFoundError):
                if alone and (not fcntl or os.path.samestat(os.fstat(lock), os.stat(path))):
                    return lock, True
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        if time.monotonic() >= until:
            raise Refused(
                f"{target} is being written by another process: wait until it is done, or end it, and try again."
            )
        time.sleep(0.02)


def _lock(lock: int) -> bool | None:
    """Lock an open file without waiting: True if it is ours now, False if it is another's, None where there are no locks."""
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)  # tested with a stand-in, not run on Windows
        return True
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK) else None


def _tidy(target: Path, alone: bool) -> None:
    """Bring `target` back where a killed writer left nothing there; remove all other asides where no other writer can be at work."""
    former = _asides(target, "old")
    if former and not os.path.lexists(target):
        os.replace(former.pop(), target)
    if alone:
        for left in former:  # no half-removed folder may pass for a whole one
            with suppress(OSError):
                os.replace(left, _beside(target, "tmp"))
        for left in _asides(target, "tmp"):
            _discard(left)


def _place(path) -> Path:
    """The absolute path that is meant: ~ and all parents resolved, the last name as it is, for it may be a link."""
    path = Path(path).expanduser()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _stem(target: Path) -> str:
    """What the names of all asides of `target` begin with; a very long name leaves no room for more."""
    name = target.name
    return f".{name}" if len(os.fsencode(name)) < 200 else f".{hashlib.sha256(os.fsencode(name)).hexdigest()}"


def _beside(target: Path, kind: str) -> Path:
    """A new name for an aside, which sorts by its time; that of the lock is always the same."""
    token = "" if kind == "lock" else f".{time.time_ns():016x}{secrets.token_hex(4)}"
    return target.with_name(f"{_stem(target)}{token}.{kind}")


def _asides(target: Path, kind: str) -> list[Path]:
    """The asides of one kind that stand beside `target`, the newest last."""
    form = re.compile(rf"{re.escape(_stem(target))}\.{_TOKEN}\.{kind}")
    with suppress(OSError):
        return sorted(target.with_name(name) for name in os.listdir(target.parent) if form.fullmatch(name))
    return []


def _discard(folder: Path) -> None:
    """Remove an aside as far as that goes: what Windows holds open, the next writer removes. No link is followed."""
    shutil.rmtree(folder, ignore_errors=True)


def _rename(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except PermissionError as error:
        if _SYSTEM != "win32":
            raise
        raise Refused(  # tested with a stand-in, not run on Windows
            f"{target} cannot be replaced, for Windows says that a program has it open: close it there, and try again. "
            "What was there is as it was."
        ) from error


def _sync(path) -> None:
    """Bring a file, or the names in a folder, to the disk. Some disks' formats cannot be asked to."""
    windows = _SYSTEM == "win32"
    if windows and os.path.isdir(path):
        return
    opened = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    finally:
        os.close(opened)


def _status(path: Path):
    """The status of what is at `path` itself, a link not followed; None where nothing is."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise Refused(f"{path} cannot be written, for a part of it is a file: choose another place.") from None


def _state(folder) -> tuple | None:
    there = _status(_place(folder))
    return there and (there.st_ino, there.st_mtime_ns)


def _kind(there) -> str:
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe"}
    return kinds.get(stat.S_IFMT(there.st_mode), "a device")
