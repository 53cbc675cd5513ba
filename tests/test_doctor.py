"""The doctor reports packages, GPU, precision, memory, disks and Hugging Face, and a fix for each problem."""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import re
import socket
import time
from collections import namedtuple
from pathlib import Path

import pytest

from lorakit import doctor
from lorakit.doctor import OPTIONAL, CheckResult, check_machine, gpu_checks, release, requirements
from lorakit.machine import gpu, host
from lorakit.machine.device import choose_precision
from lorakit.project import platforms

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
T4 = {
    "torch": "2.11.0+cu128",
    "cuda": "12.8",
    "available": True,
    "warning": "",
    "name": "Tesla T4",
    "capability": [7, 5],
    "built_for": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "free": 15.5e9,
    "total": 15.8e9,
    "failed": "",
    "precision": "fp16",
}


@pytest.fixture(autouse=True)
def one_probe(monkeypatch):
    """A process with torch takes seconds: these tests start it once, or set what it would return."""
    monkeypatch.setattr(doctor, "_cached_facts", dict(_probed()))


def _probed(found={}):  # noqa: B006 (the memory between tests is what it is for)
    found.update(found or gpu.query())
    return found


def checks(folder: Path) -> dict[str, CheckResult]:
    return {check.name: check for check in check_machine(folder)}


def checks_of(monkeypatch, **facts) -> dict[str, CheckResult]:
    """What is reported about a GPU with these facts."""
    return {check.name: check for check in gpu_checks({**T4, **facts})}


def declared(key: str) -> dict[str, str]:
    """Packages and lower bounds in one list of pyproject.toml (read plainly: Python 3.10 has no tomllib)."""
    inside = re.search(rf"^{key} = \[(.*?)\]$", PYPROJECT, re.MULTILINE | re.DOTALL)[1]
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)', inside))


def test_every_declared_package_is_checked_with_its_lower_bound():
    assert declared("dependencies") == requirements()
    assert {name for extra in ("bnb", "prodigy", "tagger") for name in declared(extra)} == set(OPTIONAL)


def test_a_working_machine_is_reported_with_versions_and_no_fix(tmp_path):
    found = checks(tmp_path)
    assert found["Python"].value == platform.python_version()
    for name in requirements():
        assert (found[name].value, found[name].fix) == (importlib.metadata.version(name), "")
    assert found["precision"].value.startswith(choose_precision("auto").name)
    assert float(found["memory"].value.split()[0]) > 0.5
    assert str(tmp_path) in found["disk"].value
    assert {name for name, finding in found.items() if finding.fix} <= {"GPU", "Hugging Face", "memory", "GPU memory"}


def test_a_missing_or_old_package_is_reported_with_its_install_command(monkeypatch, tmp_path):
    lowest = {"torch": "99.1", "no-such-package": "1.2", "numpy": "1.0"}
    monkeypatch.setattr(doctor, "requirements", lambda: lowest)
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": "optimizer x"})
    found = checks(tmp_path)
    assert found["no-such-package"].fix == "pip install 'no-such-package>=1.2'"
    old = found["torch"].fix
    assert found["torch"].value == importlib.metadata.version("torch") and "99.1 or newer is required" in old
    assert "pip install 'torch>=99.1'" in old and "Runtime version > Latest" in old
    assert found["no-such-extra"].fix == "", "optional packages are no problem"
    assert "only optimizer x needs it: pip install no-such-extra" in found["no-such-extra"].value


@pytest.mark.parametrize(
    ("found", "needed", "fits"),
    [("2.11.0+cu128", "2.8", True), ("2.8.0", "2.11", False), ("5.0.0rc1", "5.0", True), ("7.7", "7.7.1", False)],
)
def test_versions_are_compared_as_numbers(found, needed, fits):
    assert (release(found) >= release(needed)) == fits


# ---- the GPU


def test_torch_is_queried_once(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_cached_facts", {})
    asked = []
    monkeypatch.setattr(gpu, "query", lambda: asked.append(1) or {**T4})
    check_machine(tmp_path)
    check_machine(tmp_path)
    assert len(asked) == 1


def test_a_problem_that_can_be_fixed_meanwhile_is_checked_again(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_cached_facts", {})
    answers = iter([{**T4, "free": 1e9}, {**T4}])
    monkeypatch.setattr(gpu, "query", lambda: next(answers))
    assert "shut down its kernel" in checks(tmp_path)["GPU memory"].fix
    assert checks(tmp_path)["GPU memory"].fix == ""


def test_facts_come_back_whole_from_the_other_process():
    import torch

    found = _probed()
    assert found["torch"] == torch.__version__ and found["available"] == torch.cuda.is_available()
    assert found["precision"] == choose_precision("auto").name


@pytest.mark.parametrize(
    ("source", "said", "timeout"),
    [
        ("import time; time.sleep(60)", "no answer within 1 s", 1),
        ("import sys; sys.exit('driver gone')", "driver gone", 60),
    ],
)
def test_a_torch_that_hangs_or_dies_is_reported(source, said, timeout, monkeypatch, tmp_path):
    fake = tmp_path / "torch"
    fake.mkdir()
    (fake / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "TIMEOUT", timeout)
    found = {check.name: check for check in gpu_checks(gpu.query())}
    assert said in found["GPU"].fix and "restart the runtime" in found["GPU"].fix


def test_without_a_gpu_one_line_says_where_to_get_one(monkeypatch):
    found = checks_of(monkeypatch, available=False, precision="fp32")
    assert found["GPU"].value == "none" and "Change runtime type" in found["GPU"].fix
    assert found["precision"].value == "fp32, as there is no GPU" and found["precision"].fix == ""


def test_an_old_driver_is_reported_in_torchs_words(monkeypatch):
    found = checks_of(
        monkeypatch, available=False, warning="CUDA initialization: The NVIDIA driver is too old", precision="fp32"
    )
    assert "driver is too old" in found["GPU"].fix


@pytest.mark.parametrize(
    ("name", "capability", "cure", "precision"),
    [
        ("Tesla T4", [7, 5], "", "fp16, as compute capability 7.5 is below 8.0"),
        ("NVIDIA A100", [8, 0], "", "bf16, as compute capability 8.0 is at least 8.0"),
        ("NVIDIA L4", [8, 9], "", "bf16"),
        ("Tesla P100", [6, 0], "): choose another GPU (T4 or newer; on Kaggle GPU T4 x2)", "fp16"),
        ("NVIDIA Next", [13, 0], "is newer than torch 2.11.0+cu128 (which is built for sm_75", "bf16"),
    ],
)
def test_a_gpu_is_compared_with_what_torch_is_built_for(name, capability, cure, precision, monkeypatch):
    found = checks_of(monkeypatch, name=name, capability=capability, precision=precision[:4])
    assert found["GPU"].value == f"{name}, compute capability {capability[0]}.{capability[1]}"
    assert cure in found["GPU"].fix and bool(found["GPU"].fix) == bool(cure)
    assert found["precision"].value.startswith(precision)


def test_code_for_a_virtual_architecture_runs_on_all_later_gpus():
    assert gpu.is_built_for((12, 1), ["sm_80", "compute_90"]) and not gpu.is_built_for((8, 9), ["compute_90"])
    assert gpu.is_built_for((9, 0), ["sm_90a"]) and not gpu.is_built_for((7, 0), ["sm_75"])


def test_a_failed_calculation_is_reported_with_its_error(monkeypatch):
    found = checks_of(monkeypatch, failed="CUDA error: no kernel image is available")
    assert "no kernel image" in found["GPU"].fix and "restart the runtime" in found["GPU"].fix


def test_a_broken_onnxruntime_is_reported_with_its_fix(monkeypatch):
    found = checks_of(monkeypatch, onnx_error="libcudart.so.13: cannot open shared object file")
    assert "pip uninstall -y onnxruntime-gpu" in found["onnxruntime runs on"].fix
    assert checks_of(monkeypatch, onnx="CPU")["onnxruntime runs on"].value == "CPU"


@pytest.mark.gpu
def test_a_gpu_that_calculates_is_reported_with_capability_and_memory(tmp_path):
    found = checks(tmp_path)
    assert "compute capability" in found["GPU"].value and found["GPU"].fix == "" and "GPU memory" in found


# ---- memory, disks, Hugging Face


@pytest.mark.parametrize(
    ("available", "total", "cured"), [(11e9, 13.6e9, False), (5e9, 13.6e9, True), (7e9, 8e9, True)]
)
def test_little_memory_is_reported_with_what_needs_it(available, total, cured, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "memory", lambda: host.Memory(int(available), int(total)))
    found = checks(tmp_path)["memory"]
    assert found.value == f"{available / 1e9:.1f} of {total / 1e9:.1f} GB free"
    assert ("6 GB (SDXL)" in found.fix) == cured


@pytest.mark.parametrize(("free", "cured"), [(2e9, True), (50e9, False)])
def test_a_full_disk_is_reported(free, cured, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(free))
    disk = checks(tmp_path)["disk"]
    assert disk.value.startswith(f"{free / 1e9:.1f} GB free") and bool(disk.fix) == cured


def test_the_disk_of_the_remote_copy_is_reported_apart(monkeypatch, tmp_path):
    def usage(folder):
        if "gone" in str(folder):
            raise OSError(107, "Transport endpoint is not connected")
        return namedtuple("Usage", "free")(0.5e9 if "drive" in str(folder) else 50e9)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    for name, word in (("drive", "trash"), ("gone", "mounts Drive")):
        (tmp_path / name).mkdir()
        (tmp_path / "home.json").write_text(f'{{"home": "{tmp_path / name}"}}')
        found = checks(tmp_path)
        assert found["disk"].fix == "" and word in found["remote copy"].fix


def test_a_folder_that_does_not_exist_yet_is_checked_where_it_will_be(tmp_path):
    assert str(tmp_path) in checks(tmp_path / "not" / "yet")["disk"].value
    assert "GB free" in checks(Path("not/yet"))["disk"].value


def test_a_silent_server_is_waited_for_two_seconds_at_most(monkeypatch, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        found = checks(tmp_path)["Hugging Face"]
    assert time.monotonic() - begin < 3 and "check HF_ENDPOINT" in found.fix


def test_a_slow_name_lookup_is_waited_for_no_longer(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "hub_error", lambda address: time.sleep(10))
    begin = time.monotonic()
    found = checks(tmp_path)["Hugging Face"]
    assert time.monotonic() - begin < 3 and "no answer within 2 s" in found.fix


@pytest.mark.parametrize(("switch", "word"), [(False, "check the connection"), (True, "/etc/network_turbo")])
def test_a_blocked_connection_is_reported_with_the_mirror_and_autodls_switch(switch, word, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setattr(doctor, "hub_error", lambda address: "ConnectTimeout")
    (tmp_path / "switch").write_text("")
    monkeypatch.setattr(platforms, "SWITCH", tmp_path / ("switch" if switch else "none"))
    found = checks(tmp_path)["Hugging Face"]
    assert found.value == "https://huggingface.co"
    assert "HF_ENDPOINT=https://hf-mirror.com" in found.fix and word in found.fix and "ConnectTimeout" in found.fix


# ---- 中文


def sentences() -> set[str]:
    """Every text and every remedy in doctor.py."""
    found = {doctor.NO_MIRROR, doctor.NO_HUB_ON_AUTODL, doctor.NO_HUB}
    for call in ast.walk(ast.parse(Path(doctor.__file__).read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("failed", "passed"):
            for given in call.args[1:]:
                options = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
                found |= {option.value for option in options if isinstance(option, ast.Constant)}
    return found


def test_every_text_has_its_chinese_and_no_translation_is_left_over():
    from widgets.i18n import translations

    there, source = set(translations()["doctor"]), Path(doctor.__file__).read_text(encoding="utf-8")
    assert not sentences() - there
    assert not {text for text in there - sentences() if f'"{text}"' not in source}
