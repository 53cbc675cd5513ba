"""The doctor names versions, device, precision, memory, disks and hub, and a cure for what is wrong."""

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
from lorakit.doctor import OPTIONAL, REQUIRED, Finding, examine
from lorakit.machine import gpu, host
from lorakit.machine.device import choose
from lorakit.project import platforms

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
T4 = {
    "torch": "2.11.0+cu128",
    "cuda": "12.8",
    "available": True,
    "said": "",
    "name": "Tesla T4",
    "capability": [7, 5],
    "built_for": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "free": 15.5e9,
    "total": 15.8e9,
    "wrong": "",
    "precision": "fp16",
}


@pytest.fixture(autouse=True)
def one_probe(monkeypatch):
    """A process with torch takes seconds: these tests start it once, or tell what it would say."""
    monkeypatch.setattr(doctor, "_known", dict(_probed()))


def _probed(found={}):  # noqa: B006 (the memory between tests is what it is for)
    found.update(found or gpu.ask())
    return found


def findings(folder: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(folder)}


def told(monkeypatch, **facts) -> dict[str, Finding]:
    """What the doctor says of a GPU with these facts."""
    return {finding.name: finding for finding in doctor._gpu({**T4, **facts})}


def declared(key: str) -> dict[str, str]:
    """Packages and lower bounds in one list of pyproject.toml (read plainly: Python 3.10 has no tomllib)."""
    inside = re.search(rf"^{key} = \[(.*?)\]$", PYPROJECT, re.MULTILINE | re.DOTALL)[1]
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)', inside))


def test_every_package_that_we_declare_is_examined_with_its_lower_bound():
    assert declared("dependencies") == REQUIRED
    assert {name for extra in ("bnb", "prodigy", "tagger") for name in declared(extra)} == set(OPTIONAL)


def test_everything_is_told_with_its_version_and_nothing_needs_a_cure_but_gpu_and_hub(tmp_path):
    found = findings(tmp_path)
    assert found["Python"].value == platform.python_version()
    for name in REQUIRED:
        assert (found[name].value, found[name].cure) == (importlib.metadata.version(name), "")
    assert found["precision"].value.startswith(choose("auto").name)
    assert float(found["memory"].value.split()[0]) > 0.5
    assert str(tmp_path) in found["disk"].value
    assert {name for name, finding in found.items() if finding.cure} <= {"GPU", "hub", "memory", "GPU memory"}


def test_a_package_that_is_missing_or_too_old_is_named_with_what_is_needed_and_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "REQUIRED", {"torch": "99.1", "no-such-package": "1.2", "numpy": "1.0"})
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": "optimizer x"})
    found = findings(tmp_path)
    assert found["no-such-package"].cure == "pip install 'no-such-package>=1.2'"
    old = found["torch"].cure
    assert found["torch"].value == importlib.metadata.version("torch") and "99.1 or newer is needed" in old
    assert "pip install 'torch>=99.1'" in old and "Runtime version > Latest" in old
    assert found["no-such-extra"].cure == "", "optional packages are no trouble"
    assert "only optimizer x needs it: pip install no-such-extra" in found["no-such-extra"].value


@pytest.mark.parametrize(
    ("found", "needed", "fits"),
    [("2.11.0+cu128", "2.8", True), ("2.8.0", "2.11", False), ("5.0.0rc1", "5.0", True), ("7.7", "7.7.1", False)],
)
def test_versions_are_compared_as_numbers(found, needed, fits):
    assert (doctor._release(found) >= doctor._release(needed)) == fits


# ---- the GPU


def test_torch_is_asked_in_a_process_of_its_own_and_once(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_known", {})
    asked = []
    monkeypatch.setattr(gpu, "ask", lambda: asked.append(1) or {**T4})
    examine(tmp_path)
    examine(tmp_path)
    assert len(asked) == 1


def test_trouble_that_can_be_mended_meanwhile_is_looked_at_again(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_known", {})
    answers = iter([{**T4, "free": 1e9}, {**T4}])
    monkeypatch.setattr(gpu, "ask", lambda: next(answers))
    assert "shut down its kernel" in findings(tmp_path)["GPU memory"].cure
    assert findings(tmp_path)["GPU memory"].cure == ""


def test_facts_come_back_whole_from_the_other_process():
    import torch

    found = _probed()
    assert found["torch"] == torch.__version__ and found["available"] == torch.cuda.is_available()
    assert found["precision"] == choose("auto").name


@pytest.mark.parametrize(
    ("source", "said", "timeout"),
    [
        ("import time; time.sleep(60)", "no answer within 1 s", 1),
        ("import sys; sys.exit('driver gone')", "driver gone", 60),
    ],
)
def test_a_torch_that_hangs_or_dies_is_told_and_stops_nothing(source, said, timeout, monkeypatch, tmp_path):
    fake = tmp_path / "torch"
    fake.mkdir()
    (fake / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "TIMEOUT", timeout)
    found = {finding.name: finding for finding in doctor._gpu(gpu.ask())}
    assert said in found["GPU"].cure and "restart the runtime" in found["GPU"].cure


def test_without_a_gpu_one_line_says_where_to_get_one(monkeypatch):
    found = told(monkeypatch, available=False, precision="fp32")
    assert found["GPU"].value == "none" and "Change runtime type" in found["GPU"].cure
    assert found["precision"].value == "fp32, as there is no GPU" and found["precision"].cure == ""


def test_a_driver_that_is_too_old_is_told_in_torchs_words(monkeypatch):
    found = told(
        monkeypatch, available=False, said="CUDA initialization: The NVIDIA driver is too old", precision="fp32"
    )
    assert "driver is too old" in found["GPU"].cure


@pytest.mark.parametrize(
    ("name", "capability", "cure", "precision"),
    [
        ("Tesla T4", [7, 5], "", "fp16, as compute capability 7.5 is below 8.0"),
        ("NVIDIA A100", [8, 0], "", "bf16, as compute capability 8.0 is at least 8.0"),
        ("NVIDIA L4", [8, 9], "", "bf16"),
        ("Tesla P100", [6, 0], "too old: choose another card (T4 or newer; on Kaggle GPU T4 x2)", "fp16"),
        ("NVIDIA Next", [13, 0], "newer than this torch: pip install --upgrade torch", "bf16"),
    ],
)
def test_a_card_is_compared_with_what_torch_is_built_for(name, capability, cure, precision, monkeypatch):
    found = told(monkeypatch, name=name, capability=capability, precision=precision[:4])
    assert found["GPU"].value == f"{name}, compute capability {capability[0]}.{capability[1]}"
    assert cure in found["GPU"].cure and bool(found["GPU"].cure) == bool(cure)
    assert found["precision"].value.startswith(precision)


def test_code_for_a_virtual_architecture_runs_on_all_later_cards():
    assert gpu.is_built_for((12, 1), ["sm_80", "compute_90"]) and not gpu.is_built_for((8, 9), ["compute_90"])
    assert gpu.is_built_for((9, 0), ["sm_90a"]) and not gpu.is_built_for((7, 0), ["sm_75"])


def test_a_calculation_that_fails_is_told_with_its_error(monkeypatch):
    found = told(monkeypatch, wrong="CUDA error: no kernel image is available")
    assert "no kernel image" in found["GPU"].cure and "restart the runtime" in found["GPU"].cure


def test_a_broken_onnxruntime_is_told_with_its_cure(monkeypatch):
    found = told(monkeypatch, onnx_wrong="libcudart.so.13: cannot open shared object file")
    assert "pip uninstall -y onnxruntime-gpu" in found["onnxruntime runs on"].cure
    assert told(monkeypatch, onnx="CPU")["onnxruntime runs on"].value == "CPU"


@pytest.mark.gpu
def test_a_gpu_is_told_by_name_capability_and_memory_after_it_has_calculated(tmp_path):
    found = findings(tmp_path)
    assert "compute capability" in found["GPU"].value and found["GPU"].cure == "" and "GPU memory" in found


# ---- memory, disks, the hub


@pytest.mark.parametrize(
    ("available", "total", "cured"), [(11e9, 13.6e9, False), (5e9, 13.6e9, True), (7e9, 8e9, True)]
)
def test_little_memory_is_told_with_what_needs_it(available, total, cured, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "memory", lambda: host.Memory(int(available), int(total)))
    found = findings(tmp_path)["memory"]
    assert found.value == f"{available / 1e9:.1f} of {total / 1e9:.1f} GB free"
    assert ("SDXL and Anima" in found.cure) == cured


@pytest.mark.parametrize(("free", "cured"), [(2e9, True), (50e9, False)])
def test_a_full_disk_is_told(free, cured, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(free))
    disk = findings(tmp_path)["disk"]
    assert disk.value.startswith(f"{free / 1e9:.1f} GB free") and bool(disk.cure) == cured


def test_the_disk_of_the_projects_home_is_told_apart(monkeypatch, tmp_path):
    def usage(folder):
        if "gone" in str(folder):
            raise OSError(107, "Transport endpoint is not connected")
        return namedtuple("Usage", "free")(0.5e9 if "drive" in str(folder) else 50e9)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    for name, word in (("drive", "trash"), ("gone", "first cell again")):
        (tmp_path / name).mkdir()
        (tmp_path / "home.json").write_text(f'{{"home": "{tmp_path / name}"}}')
        found = findings(tmp_path)
        assert found["disk"].cure == "" and word in found["remote copy"].cure


def test_a_folder_that_does_not_exist_yet_is_examined_where_it_will_be(tmp_path):
    assert str(tmp_path) in findings(tmp_path / "not" / "yet")["disk"].value
    assert "GB free" in findings(Path("not/yet"))["disk"].value


def test_a_hub_that_never_answers_is_waited_for_two_seconds_at_most(monkeypatch, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        found = findings(tmp_path)["hub"]
    assert time.monotonic() - begin < 3 and "check HF_ENDPOINT" in found.cure


def test_a_name_that_is_looked_up_for_ever_is_waited_for_no_longer(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_hub_error", lambda address: time.sleep(10))
    begin = time.monotonic()
    found = findings(tmp_path)["hub"]
    assert time.monotonic() - begin < 3 and "no answer within 2 s" in found.cure


@pytest.mark.parametrize(("switch", "word"), [(False, "check the connection"), (True, "/etc/network_turbo")])
def test_a_blocked_hub_is_told_with_the_mirror_and_autodls_switch(switch, word, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setattr(doctor, "_hub_error", lambda address: "ConnectTimeout")
    (tmp_path / "switch").write_text("")
    monkeypatch.setattr(platforms, "SWITCH", tmp_path / ("switch" if switch else "none"))
    found = findings(tmp_path)["hub"]
    assert found.value == "https://huggingface.co"
    assert "HF_ENDPOINT=https://hf-mirror.com" in found.cure and word in found.cure and "ConnectTimeout" in found.cure


# ---- 中文


def sentences() -> set[str]:
    """Every text and every remedy that stands in doctor.py."""
    found = set()
    for call in ast.walk(ast.parse(Path(doctor.__file__).read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("trouble", "well"):
            for given in call.args[1:]:
                options = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
                found |= {option.value for option in options if isinstance(option, ast.Constant)}
    return found


def test_all_that_is_said_has_its_chinese_and_no_translation_is_left_over():
    from widgets.i18n import translations

    there, source = set(translations()["doctor"]), Path(doctor.__file__).read_text(encoding="utf-8")
    assert not sentences() - there
    assert not {text for text in there - sentences() if f'"{text}"' not in source}
