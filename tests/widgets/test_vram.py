"""The form and the view before training say what VRAM a run needs, whether it fits, and which settings save enough."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from sessions import new_run
from tiny import save_base

from lorakit.machine.gpu import Gpu
from lorakit.project import Project
from lorakit.run import memory
from lorakit.run.fits import Fit, Need, with_settings
from widgets import i18n
from widgets.training import before, machine, vram
from widgets.training.form import Form


def gpu(gigabytes: float) -> Gpu:
    return Gpu("RTX 3060", round(gigabytes * 1e9), (8, 6))


def rungs(config, capability=(8, 0)):
    """20 GB as set, 11 with gradient checkpointing; sample images take 10 GB, in tiles 7."""
    as_set = Fit(None, {}, config, Need(4 * 10**9, 20 * 10**9, 10**10, 7 * 10**9), "bf16", True)
    yield as_set
    changes = {"memory.gradient_checkpointing": True}
    yield replace(
        as_set,
        rung=memory.LADDER[1],
        changes=changes,
        config=with_settings(config, changes),
        need=replace(as_set.need, training=11 * 10**9),
    )


@pytest.fixture
def form(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "")
    monkeypatch.setattr(vram, "descend", rungs)
    form = Form(Project(tmp_path / "project"))
    form.set("model.source", "demo")
    return form


def answered(form: Form) -> str:
    form.vram.button.click()
    return re.sub(r"<[^>]+>", " ", form.vram.answer.value)


@pytest.mark.parametrize(
    "gigabytes, sentence",
    (
        (24.0, "It fits: RTX 3060 has 24.0 GB."),
        (21.0, "It barely fits: RTX 3060 has 21.0 GB."),
        (12.9, "It does not fit: RTX 3060 has 12.9 GB .*needs 11.0 GB: “Gradient checkpointing” yes"),
        (8.0, "Take a smaller resolution"),
        (0.0, r"No GPU is here; one with 24 GB is enough \(L4, RTX 3090, 4090\)"),
    ),
)
def test_the_form_says_what_fits_the_gpu_at_hand(form, monkeypatch, gigabytes, sentence):
    monkeypatch.setattr(vram, "at_hand", lambda: gpu(gigabytes) if gigabytes else None)
    text = answered(form)
    assert re.search(sentence, text, re.DOTALL), text
    assert "training 20.0 GB" in text and "samples 10.0 GB (7.0 GB in tiles)" in text and "not measured" in text


def test_the_answer_is_gone_once_a_setting_changes_it_and_stays_else(form, monkeypatch):
    monkeypatch.setattr(vram, "at_hand", lambda: None)
    assert answered(form)
    form.set("save.every_epochs", 3)
    assert form.vram.answer.value
    form.set("loop.batch_size", 3)
    assert not form.vram.answer.value
    form.reset("model.source")
    assert "is missing" in answered(form)


def test_the_answer_is_in_chinese_too(form, monkeypatch):
    monkeypatch.setattr(vram, "at_hand", lambda: gpu(12.9))
    i18n.use("zh")
    try:
        assert "不够：RTX 3060 有 12.9 GB" in answered(form)
    finally:
        i18n.use("en")


@pytest.mark.parametrize("has_gpu", (True, False))
def test_before_training_the_computed_need_is_shown_where_there_is_a_gpu(tmp_path, monkeypatch, has_gpu):
    run = new_run(tmp_path / "p", save_base("sd15", tmp_path / "base"))
    for module in (vram, before):
        monkeypatch.setattr(module, "at_hand", lambda: gpu(24.0) if has_gpu else None)
    monkeypatch.setattr(vram, "descend", rungs)
    view = before._View(run, None, 3.0)
    assert ("It fits: RTX 3060" in view.html()) == has_gpu
