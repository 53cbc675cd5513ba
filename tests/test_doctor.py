"""The doctor names versions, device, precision, memory and disk, and a cure for what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import namedtuple
from pathlib import Path

import pytest

from lorakit import doctor
from lorakit.doctor import OPTIONAL, REQUIRED, examine
from lorakit.precision import choose

PYPROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")


def declared(key: str) -> list[str]:
    """Names of the packages in one list of pyproject.toml (read plainly: Python 3.10 has no tomllib)."""
    inside = re.search(rf"^{key} = \[(.*?)\]$", PYPROJECT, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r'"([\w-]+)[><=]', inside)


def test_every_package_that_we_declare_is_examined():
    assert set(declared("dependencies")) == set(REQUIRED)
    assert {name for extra in ("bnb", "prodigy", "tagger") for name in declared(extra)} == set(OPTIONAL)


def test_everything_is_told_with_its_version_and_nothing_needs_a_cure_but_the_gpu(tmp_path):
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert found["Python"].value == platform.python_version()
    for name in REQUIRED:
        assert (found[name].value, found[name].cure) == (importlib.metadata.version(name), "")
    assert found["precision"].value == choose("auto").name
    assert float(found["memory"].value.split()[0]) > 0.5
    assert list(found)[-1] == "disk" and str(tmp_path) in found["disk"].value


def test_a_missing_package_is_told_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": "optimizer x"})
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert found["no-such-package"].value == "not installed"
    assert found["no-such-package"].cure == "pip install no-such-package"
    assert found["no-such-extra"].cure == "pip install no-such-extra  (only for optimizer x)"


def test_without_a_gpu_it_says_where_to_get_one(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert found["GPU"].value == "none" and "Change runtime type" in found["GPU"].cure
    assert found["precision"].value == "fp32"


@pytest.mark.gpu
def test_a_gpu_is_told_by_name_capability_and_memory_after_it_has_calculated(tmp_path):
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert "compute capability" in found["GPU"].value and found["GPU"].cure == "" and "GPU memory" in found


@pytest.mark.parametrize(("free", "cured"), [(2e9, True), (50e9, False)])
def test_a_full_disk_is_told(free, cured, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(free))
    disk = examine(tmp_path)[-1]
    assert disk.value.startswith(f"{free / 1e9:.1f} GB free") and bool(disk.cure) == cured


def test_a_folder_that_does_not_exist_yet_is_examined_where_it_will_be(tmp_path):
    assert str(tmp_path) in examine(tmp_path / "not" / "yet")[-1].value
    assert "GB free" in examine(Path("not/yet"))[-1].value
