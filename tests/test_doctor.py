"""The doctor finds planted faults, says what to do about each, and gives nothing of the machine away."""

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from utils import ROOT, assets, doctor, profiles, training


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    """The defaults, whatever the environment of these tests sets."""
    for name in ("COURSE_PROFILE", "COURSE_BUILD", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a course tested inside another course's environment finds itself


@pytest.fixture
def install(monkeypatch, tmp_path):
    """install(name, version): let Python find that version of a package first."""

    def plant(name, version):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return plant


def rows(what):
    """The findings on `what`, from a report whose rows all keep the rules."""
    report = doctor.report()
    for row in report:
        assert row.status in ("ok", "warn", "fail")
        assert bool(row.remedy) == (row.status != "ok"), f"a remedy for each fault, and none without: {row}"
        assert row.remedy == "" or re.fullmatch(r"[A-Z].*\.", row.remedy), f"a remedy is a sentence: {row.remedy}"
    return [row for row in report if row.what == what]


def the(what):
    (row,) = rows(what)
    return row


def assert_anonymous(text):
    for folder in (ROOT, Path.home(), Path(sys.prefix), Path(sys.executable).parent, assets.cache_dir()):
        if len(str(folder)) > 1:
            assert str(folder) not in text
    assert not re.search(r"(?<![\w.])(/|[A-Za-z]:\\)\w+[/\\]", text), text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_this_machine_is_ready():
    """Where this fails, read what the doctor prints: the environment is not set up."""
    assert not [row for row in doctor.report() if row.status == "fail"]


def test_old_torchao_is_found(install):
    install("torchao", "0.10.0")
    row = the("torchao")
    assert row.status == "fail" and "0.10.0" in row.found and "uninstall -y torchao" in row.remedy


def test_new_torchao_is_left_alone(install):
    install("torchao", "0.16.0")
    assert not rows("torchao")


def test_version_below_the_range_fails(install):
    install("peft", "0.10.0")
    row = the("peft")
    assert row.status == "fail" and "0.10.0" in row.found and ">=0.20" in row.found and "make setup" in row.remedy
    assert not rows("packages"), "no row may say that all is as tested"


def test_other_version_within_the_range_warns(install):
    install("peft", "0.99.0")
    row = the("peft")
    assert row.status == "warn" and "0.99.0" in row.found and "make setup" in row.remedy


def test_local_build_of_the_pinned_version_is_the_pinned_version(install):
    install("torch", "2.13.0+cu130")
    assert not rows("torch")


def uninstall(name, monkeypatch):
    real = metadata.version

    def version(asked):
        if asked == name:
            raise metadata.PackageNotFoundError(name)
        return real(asked)

    monkeypatch.setattr(metadata, "version", version)


def test_missing_package_fails(monkeypatch):
    uninstall("trl", monkeypatch)
    row = the("trl")
    assert row.status == "fail" and "not installed" in row.found and "pip install -r requirements.txt" in row.remedy


def test_missing_assets_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "nothing" / "here"))
    row = the("assets")
    assert row.status == "fail" and "python -m utils.assets" in row.remedy
    assert all(f"{name} missing" in row.found for name in assets.ASSETS)
    assert not (tmp_path / "nothing").exists(), "looking must not build"


def test_damaged_asset_is_found(monkeypatch, tmp_path):
    shutil.copytree(assets.path("sentences"), tmp_path / "sentences")
    text = next(iter((tmp_path / "sentences").glob("movie*")))
    data = bytearray(text.read_bytes())
    data[1000] ^= 1  # same size, one bit off
    text.write_bytes(data)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    row = the("assets")
    assert row.status == "fail" and "sentences damaged" in row.found and "python -m utils.assets" in row.remedy


@pytest.mark.parametrize("have_assets,status", [(True, "warn"), (False, "fail")])
def test_full_disk(monkeypatch, tmp_path, have_assets, status):
    if not have_assets:
        monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(10**10, 10**10, 4 * 10**8)
    )
    row = the("disk")
    assert row.status == status and "0.4 GB" in row.found and "COURSE_CACHE" in row.remedy


def read_only(dir):
    raise PermissionError(errno.EROFS, "Read-only file system", str(dir))


def test_read_only_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    row = the("build")
    assert row.status == "fail" and "COURSE_BUILD" in row.remedy and "COURSE_CACHE" in row.remedy
    assert the("home").status == "warn" and "HOME" in the("home").remedy
    assert the("disk").status == "ok", "a complete cache may be read-only"
    monkeypatch.undo()
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "not" / "yet"))
    assert not rows("build") and not list(tmp_path.iterdir()), "looking must not build"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder here that even root cannot write to")
def test_a_folder_that_really_cannot_be_written(monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", "/proc/course")
    assert the("build").status == "fail"


def nobody(monkeypatch):
    """A user without HOME, whom the system does not know: a container started with a bare user id."""
    for name in ("HOME", "USERPROFILE", "HOMEDRIVE", "HOMEPATH"):
        monkeypatch.delenv(name, raising=False)
    if os.name != "nt":
        import pwd

        def unknown(_):
            raise KeyError

        monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_no_home(monkeypatch):
    nobody(monkeypatch)
    assert the("home").status == "warn" and "Set HOME" in the("home").remedy
    assert not [row for row in doctor.report() if row.status == "fail"]


@pytest.mark.parametrize("variable, what", [("COURSE_CACHE", "assets"), ("COURSE_BUILD", "build")])
@pytest.mark.parametrize("named", ["~/x", "~no-such-user/x"])
def test_a_folder_in_no_home_is_told_by_the_variable(monkeypatch, variable, what, named):
    if named == "~/x":
        nobody(monkeypatch)
    elif os.name == "nt":
        pytest.skip("Windows guesses the folders of other users")
    monkeypatch.setenv(variable, named)
    row = the(what)
    assert row.status == "fail" and row.found.startswith(f"{variable}={named} begins with ~") and "anew" in row.remedy
    with pytest.raises((assets.AssetError, ValueError), match=f"^{variable}={named} begins with ~"):
        assets.cache_dir() if what == "assets" else profiles.get().build


def test_folders_in_a_home_and_relative_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for named, found in (("~/x", tmp_path / "x"), ("x/y", ROOT / "x" / "y"), (str(tmp_path), tmp_path)):
        monkeypatch.setenv("COURSE_CACHE", named)
        monkeypatch.setenv("COURSE_BUILD", named)
        assert assets.cache_dir() == profiles.get().build == found


def test_a_manifest_of_endless_depth_is_a_damaged_one(monkeypatch, tmp_path):
    shutil.copytree(assets.path("sentences"), tmp_path / "sentences")
    (tmp_path / "sentences" / "manifest.json").write_text("[" * 100_000)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    assert "sentences damaged" in the("assets").found


@pytest.mark.parametrize("kind", ["package", "module", *["bare folder"] * (os.name != "nt")])
@pytest.mark.parametrize("name", ["utils", "benchmarks"])
def test_a_foreign_package_of_our_name_is_found(monkeypatch, tmp_path, kind, name):
    """Lessons run in their folder, where PYTHONPATH comes first; here, in the course's folder, all would seem well."""
    if kind == "module":
        (tmp_path / f"{name}.py").write_text("")
    else:
        (tmp_path / name).mkdir()
    if kind == "package":
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('never run')")
    later = [] if kind == "bare folder" else [str(ROOT)]  # Python takes a bare folder where it finds nothing better
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *later]))
    if kind == "bare folder":
        monkeypatch.setattr(sys, "executable", bare_python(tmp_path))
    row = the(name)
    assert row.status == "fail" and "another package" in row.found and "PYTHONPATH" in row.remedy
    assert str(tmp_path) not in row.found


def bare_python(folder) -> str:
    """A Python without the course among its packages."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_the_course_itself_is_not_foreign(monkeypatch):
    assert not rows("utils") and not rows("benchmarks")
    monkeypatch.setattr(doctor, "COLAB", True)
    monkeypatch.setenv("PYTHONPATH", "")
    assert not rows("utils"), "on Colab the set-up cell sees to it"


def test_unwritable_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    row = next(row for row in rows("disk") if row.status == "fail")
    assert "cannot be written" in row.found and "COURSE_CACHE" in row.remedy


@pytest.mark.parametrize("free,status", [(3 * 2**30, "warn"), (2**30, "fail"), (6 * 2**30, "ok")])
def test_little_memory(monkeypatch, free, status):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("memory", "total available")(8 * 2**30, free))
    row = the("memory")
    assert row.status == status and "8 GB" in row.found
    assert status == "ok" or "close other programs" in row.remedy


def test_little_memory_left_in_a_container(monkeypatch, tmp_path):
    import psutil

    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: namedtuple("memory", "total available")(64 * 2**30, 32 * 2**30)
    )
    for name, text in {"max": 6 * 2**30, "current": 5 * 2**30, "stat": f"anon 1\ninactive_file {2**29}\n"}.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    look = doctor._container
    monkeypatch.setattr(doctor, "_container", lambda: look(tmp_path))
    assert the("memory").status == "fail" and "1.5 GB free of 6 GB" in the("memory").found
    (tmp_path / "memory.max").write_text("max\n")
    assert the("memory").status == "ok" and "64 GB" in the("memory").found


def test_every_page_tells_the_same_memory():
    wanted = f"about {doctor.MEMORY_GB} GB"
    for page in ("README.md", "docs/teaching.md", "docs/troubleshooting.md", "notebooks/06_llama2_qlora_sft.ipynb"):
        told = re.findall(
            r"about \d+ GB(?= (?:of memory )?free|\. Shut down)", (ROOT / page).read_text(encoding="utf-8")
        )
        assert told == [wanted], page


def test_unknown_profile(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "laptop")
    row = the("profile")
    assert row.status == "fail" and "laptop" in row.found and "smoke, cpu, gpu" in row.remedy


def test_gpu_profile_needs_a_gpu_and_the_hub(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COURSE_PROFILE", "gpu")
    assert the("profile").status == "ok"
    assert the("device").status == "warn" and "COURSE_PROFILE=cpu" in the("device").remedy
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert the("profile").status == "warn" and "HF_HUB_OFFLINE" in the("profile").remedy


def test_cpu_without_bf16_is_told_to_be_patient(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training, "precision", lambda: {"use_cpu": True, "bf16": False})
    assert the("device").status == "warn" and "fp32" in the("device").found
    monkeypatch.setattr(training, "precision", lambda: {"use_cpu": True, "bf16": True})
    assert the("device").status == "ok" and "bf16" in the("device").found


def test_gpu_is_named(monkeypatch):
    import torch

    card = namedtuple("card", "name total_memory")("Tesla T4", int(14.7 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(training, "precision", lambda: {"fp16": True})
    monkeypatch.setattr(doctor, "_four_bits", lambda: [])
    assert the("device").found == "Tesla T4, 15 GB, fast in fp16"


def test_broken_bitsandbytes_warns_without_naming_folders(monkeypatch):
    import bitsandbytes

    def broken(*_, **__):
        raise OSError("/home/jane doe/env/lib/libbitsandbytes_cpu.so: cannot open; see https://box.example.org/x/y")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", broken)
    row = the("four bits")
    assert row.status == "warn" and "libbitsandbytes_cpu.so: cannot open" in row.found
    assert "/home" not in row.found and "box.example.org" not in row.found


def test_broken_torch_is_a_finding_and_not_a_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import raises
    row = the("device")
    assert row.status == "fail" and "torch" in row.found and "make setup" in row.remedy


def test_kernel_of_another_environment(monkeypatch):
    monkeypatch.setattr(metadata, "distributions", lambda **_: [])
    row = the("kernel")
    assert row.status == "warn" and "make lab" in row.remedy


def test_kernelspec_of_another_environment(monkeypatch, tmp_path):
    from jupyter_client.kernelspec import KernelSpecManager

    spec = namedtuple("spec", "argv")([str(tmp_path / "bin" / "python"), "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    row = the("kernel")
    assert row.status == "warn" and "ipykernel install --sys-prefix" in row.remedy


def test_old_python_is_told_at_once(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    (row,) = doctor.report()
    assert row.status == "fail" and row.found == "3.10.4" and "3.11" in row.remedy


def test_colab_brings_its_own_jupyter(monkeypatch):
    monkeypatch.setattr(doctor, "COLAB", True)
    uninstall("jupyterlab", monkeypatch)
    assert the("kernel").status == "ok" and not rows("jupyterlab")


@pytest.mark.parametrize(
    "text",
    [
        "Error: /usr/lib/x86_64-linux-gnu/libc.so.6 is too old",
        r"DLL load failed: C:\Users\jane\.venv\Lib\site-packages\torch\lib\c10.dll",
        f"No such file: {ROOT}/data/cache/sentences",
        f"'{Path.home()}/.cache/x'",
    ],
)
def test_folders_are_left_out(text):
    assert_anonymous(doctor._anonymous(text))


def test_folders_are_left_out_but_words_stay():
    assert doctor._anonymous("CUDA 13.0 and/or ROCm; `a/b` 3/4") == "CUDA 13.0 and/or ROCm; `a/b` 3/4"


def test_table_is_aligned(capsys):
    doctor.show([doctor.Finding("ok", "a", "fine"), doctor.Finding("fail", "longer", "bad", "Do this.")])
    assert capsys.readouterr().out == (
        "ok    a       fine\nfail  longer  bad\n              -> Do this.\n\nTo mend first: 1.\n"
    )


def run(**environment):
    command = [sys.executable, "-m", "utils.doctor"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def test_command_and_notebook_say_the_same(capsys):
    """… and so does one run and the next: nothing in the table moves while the machine stays what it is."""
    done = run()
    assert done.returncode == 0 and "Ready" in done.stdout, done.stdout + done.stderr
    assert done.stderr == ""
    assert_anonymous(done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 110
    doctor.show(doctor.report())
    assert capsys.readouterr().out == done.stdout


def test_command_fails_where_something_must_be_mended(tmp_path):
    done = run(COURSE_CACHE=str(tmp_path), COURSE_PROFILE="nope")
    assert done.returncode == 1 and "To mend first: 2." in done.stdout
    assert_anonymous(done.stdout)
    assert str(tmp_path) not in done.stdout


def test_importing_the_doctor_costs_nothing():
    code = "import sys, utils.doctor; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
