"""The form: made from the configs, on disk at every change, and the same run as its code."""

import json
import re
from dataclasses import dataclass, fields

import ipywidgets
import pytest
from PIL import Image
from trained_lokr import TrainedLokr

from lorakit import models, presets
from lorakit.config import Config, ConfigError, Field, Slider, part, setting
from lorakit.lora.variants import lokr
from lorakit.project import Project
from lorakit.run import config as runs
from lorakit.run.config import RunConfig
from lorakit.run.resume import training_settings
from widgets.project import draft
from widgets.project.draft import all_settings, preset_values, supported_settings
from widgets.training import machine
from widgets.training.form import Form

CHOICES = ("run", "family", "gpu_preset", "purpose", "size", "expert")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.fixture
def made(project, monkeypatch):
    """A form of settings that are a run's."""
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "")
    tried = machine.why_unusable  # a process each
    monkeypatch.setattr(machine, "why_unusable", lambda optimizer: "" if optimizer == "adamw8bit" else tried(optimizer))
    found = Form(project)
    found.set("model.source", "demo")
    return found


def widgets_of(found, kind):
    """All widgets of a kind in a form, also in groups."""
    todo, seen = [found.widget], []
    while todo:
        widget = todo.pop()
        seen.append(widget)
        todo += getattr(widget, "children", ())
    return [widget for widget in seen if isinstance(widget, kind)]


def trouble(found, path):
    return found.rows[path].trouble


# ---- made from the configs ------------------------------------------------------------------------------------------


def test_beginners_see_eight_fields_and_experts_every_setting(family, made):
    made.choose(family=family)
    assert set(made.rows) | {"run", "preset"} == {
        "run",
        "model.source",
        "preset",
        "data.trigger",
        "adapter.rank",
        "optimizer.learning_rate",
        "loop.epochs",
        "sample.prompts",
    }
    made.choose(expert=True)
    assert set(supported_settings(family)) - set(made.rows) == {"schedule.past"}, "which extend alone writes"
    refused = {path for path in all_settings(family) if path not in supported_settings(family)}
    assert all(path in models.config_class(family).unsupported or path.endswith("_lr") for path in refused)


def test_kinds_of_settings_have_their_widgets(made):
    made.choose(expert=True)
    kinds = {path: type(row.control.widget) for path, row in made.rows.items()}
    assert type(made.rows["adapter.rank"].control.slider) is ipywidgets.IntSlider
    assert type(made.rows["adapter.alpha"].control.slider) is ipywidgets.FloatSlider
    assert type(made.rows["optimizer.learning_rate"].control.slider) is ipywidgets.FloatLogSlider
    for path in ("adapter.type", "optimizer.name", "schedule.name", "loss.weighting", "sample.sampler"):
        assert kinds[path] is ipywidgets.Dropdown
    assert kinds["data.enable_bucket"] is ipywidgets.Checkbox
    assert kinds["loop.seed"] is ipywidgets.IntText
    assert kinds["sample.prompts"] is kinds["optimizer.args"] is kinds["stages"] is ipywidgets.Textarea


@dataclass(frozen=True, kw_only=True)
class NewConfig(Config):
    """A part that no form has heard of."""

    speed: float = setting(2.5, help="how fast", unit="km/h", range=(0, 9), ui=Slider(0, 5, 0.5))
    colour: str = setting("red", help="which colour", choices=("red", "blue"), ui=Field(basic=True))
    names: tuple[str, ...] = setting((), help="all names")
    table: dict = setting({}, help="a table")
    twice: bool = setting(False, help="do it twice", ui=Field(when=("colour", ("blue",))))
    noted: int = setting(0, help="what a verb wrote", ui=Field(hidden=True))


@dataclass(frozen=True, kw_only=True)
class WiderConfig(RunConfig):
    """A run with that part."""

    new: NewConfig = part(NewConfig, help="what is new")


def test_a_new_setting_and_a_new_row_appear_without_an_edit_of_the_form(project, monkeypatch):
    for module in (runs, draft):
        monkeypatch.setattr(module, "RunConfig", WiderConfig)
    monkeypatch.setattr(lokr, "Lokr", TrainedLokr)
    found = Form(project)
    assert "new.colour" in found.rows
    found.choose(expert=True)
    assert {f"new.{f.name}" for f in fields(NewConfig)} - set(found.rows) == {"new.noted"}
    assert "km/h" in found.rows["new.speed"].head.value
    assert found.rows["new.twice"].widget.layout.display == "none"
    found.set("new.colour", "blue")
    assert found.rows["new.twice"].widget.layout.display == ""
    found.rows["new.table"].control.widget.value = "{a: 1e-4}"
    found.rows["new.names"].control.widget.value = "one\n\n two \n"
    assert found.settings["new"] == {"colour": "blue", "table": {"a": 1e-4}, "names": ["one", "two"]}
    factor = found.rows["adapter.factor"]
    assert factor.widget.layout.display == "none"
    found.rows["adapter.type"].control.widget.value = "lokr"
    assert "a Kronecker product, trained" in found.rows["adapter.type"].note.value
    assert factor.widget.layout.display == ""
    found.set("adapter.factor", 8)
    found.set("model.source", "demo")
    assert found.value.adapter == TrainedLokr.Config(type="lokr", factor=8) and found.value.new.names == ("one", "two")
    found.set("adapter.type", "lora")
    assert found.value.adapter.type == "lora" and "factor" not in found.settings["adapter"]


# ---- what is typed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed, rate", [("1e-4", 1e-4), ("0.0003", 3e-4), ("0", 0.0), ("1", 1.0), ("4.5E-5", 4.5e-5)])
def test_a_learning_rate_is_typed_or_slid(made, typed, rate):
    made.set("optimizer.text_encoder_lr", 1e-5)  # so that 0 leaves something to train
    row = made.rows["optimizer.learning_rate"]
    row.control.text.value = typed
    assert made.value.optimizer.learning_rate == rate
    assert row.control.slider.value == pytest.approx(rate or 10**row.control.slider.min)
    assert row.control.text.value == typed  # as it was typed


def test_the_left_end_of_a_learning_rate_is_off_and_its_other_places_have_two_digits(made):
    made.choose(expert=True)
    row = made.rows["optimizer.text_encoder_lr"]
    assert made.value.optimizer.text_encoder_lr == 0 and row.control.text.value == "0"
    row.control.slider.value = 10**-4.35
    assert made.value.optimizer.text_encoder_lr == 4.5e-5 and row.control.text.value == "4.5e-5"
    row.control.slider.value = 10**row.control.slider.min
    assert made.value.optimizer.text_encoder_lr == 0


def test_a_page_that_puts_a_slider_on_its_nearest_step_changes_nothing(made):
    made.set("adapter.rank", 10)
    made.set("optimizer.learning_rate", 1.23e-4)
    rate = made.rows["optimizer.learning_rate"].control.slider
    made.rows["adapter.rank"].control.slider.value, rate.value = 12, 10**-3.9
    assert (made.value.adapter.rank, made.value.optimizer.learning_rate) == (10, 1.23e-4)
    made.rows["adapter.rank"].control.slider.value, rate.value = 16, 10**-3.5
    assert (made.value.adapter.rank, made.value.optimizer.learning_rate) == (16, 3.2e-4)


def test_a_value_beyond_a_slider_moves_its_end(made):
    made.set("adapter.rank", 256)
    slider = made.rows["adapter.rank"].control.slider
    assert slider.max == slider.value == made.value.adapter.rank == 256


@pytest.mark.parametrize(
    "path, typed, told",
    [
        ("optimizer.learning_rate", "fast", "expected a number"),
        ("optimizer.learning_rate", "nan", "0 to 10"),
        ("optimizer.learning_rate", "1e999", "0 to 10"),
        ("adapter.rank", "4000", "1 to 768"),
        ("adapter.rank", "inf", "expected an integer"),
        ("adapter.rank", "9" * 400, "1 to 768"),
    ],
)
def test_a_wrong_value_is_explained_at_its_field_and_the_last_right_one_holds(made, project, path, typed, told):
    before, on_disk = made.draft.value, made.draft.file.read_text()
    text, slider = made.rows[path].control.text, made.rows[path].control.slider
    ends = slider.min, slider.max
    text.value = typed
    assert (slider.min, slider.max) == ends
    assert told in trouble(made, path) and text.value == typed
    assert made.draft.value == before and made.draft.file.read_text() == on_disk
    with pytest.raises(ConfigError, match=told):
        made.value  # noqa: B018
    made.set("data.trigger", "mofu")  # another change does not hide it
    assert told in trouble(made, path) and text.value == typed
    assert not trouble(Form(project), path)  # a new page shows the last right value
    text.value = "8"
    assert not trouble(made, path) and not trouble(made, "data.trigger")
    assert made.value is not None


def test_what_does_not_go_together_is_told_at_the_field_that_is_named_else_at_the_top(made):
    made.choose(expert=True)
    made.set("data.resolution", 1088)
    assert "must lie between" in trouble(made, "data.resolution")
    made.set("data.resolution", 512)
    made.set("optimizer.name", "prodigy")
    made.set("optimizer.text_encoder_lr", 1e-5)
    assert "optimizer: the learning rates differ" in made.top.value
    made.reset("optimizer.name")
    assert not made.top.value and not trouble(made, "data.resolution")


def test_an_optimizer_whose_package_does_not_work_here_is_refused_with_the_reason(made, monkeypatch, tmp_path):
    (tmp_path / "prodigyopt.py").write_text("raise ImportError('built for another machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made.choose(expert=True)
    made.rows["optimizer.name"].control.widget.value = "prodigy"
    assert "built for another machine" in trouble(made, "optimizer.name")
    assert "optimizer.name" not in made.draft.by_hand
    made.rows["optimizer.name"].control.widget.value = "adamw8bit"
    assert not trouble(made, "optimizer.name") and made.draft.by_hand["optimizer.name"] == "adamw8bit"


def test_what_is_wrong_in_a_group_that_is_not_shown_is_told_at_the_top(made):
    made.set("data.resolution", 1088)
    assert "must lie between" in made.top.value


def test_no_setting_is_called_by_its_dotted_name_on_the_screen(made):
    made.choose(family="anima", expert=True)
    assert "Choose this first: Base model" in trouble(made, "model.source")
    made.choose(family="sd15")
    made.set("data.resolution", 1088)
    made.set("optimizer.name", "prodigy")
    made.set("optimizer.text_encoder_lr", 1e-5)
    made.rows["adapter.rank"].control.text.value = "4000"
    made.refuse("", "adapter.rank: 8 -> 9")
    shown = made.top.value + made.end.value + "".join(trouble(made, path) for path in made.rows)
    assert "“Rank” is 4000" in shown and "“Rank”: 8" in shown and "“Resolution” is 1088" in shown
    assert not re.findall(r"\b[a-z]+\.[a-z]+_\w+|text_encoder_lr|data\.\w+", shown)


def test_text_that_is_no_yaml_is_explained(made):
    made.choose(expert=True)
    area = made.rows["optimizer.args"].control.widget
    area.value = "{a: "
    assert "not YAML" in trouble(made, "optimizer.args")
    for text in ("5", "weight_decay: 2020-01-01", "weight_decay: .nan", "1: 2"):
        area.value = text
        assert "expected " in trouble(made, "optimizer.args")
    area.value = "5"
    assert "expected a table of names and values (numbers, texts in quotes, lists)" in trouble(made, "optimizer.args")
    area.value = "{weight_decay: 1e-2}"
    assert made.value.optimizer.args == {"weight_decay": 0.01} and not trouble(made, "optimizer.args")


def test_typing_a_line_break_does_not_take_it_away(made):
    area = made.rows["sample.prompts"].control.widget
    area.value = "a girl\n"
    assert area.value == "a girl\n" and made.value.sample.prompts == ("a girl",)


def test_every_setting_shows_what_was_set(family, made):
    made.choose(family=family, expert=True)
    for path, row in made.rows.items():
        assert row.control.read() == made.draft.shown[path], path


# ---- presets, GPU presets, families ----------------------------------------------------------------------------------


def test_what_is_set_by_hand_wins_over_the_preset_the_gpu_preset_and_the_family(family, made):
    made.choose(family=family)
    config_class = models.config_class(family)
    for gpu_preset in config_class.gpu_presets:
        made.choose(gpu_preset=gpu_preset, purpose="style", size="large")
        row = presets.find(family, "style", "large")
        want = {**draft.flattened(config_class.defaults), **draft.flattened(config_class.gpu_presets[gpu_preset])}
        want |= draft.flattened(row.settings)
        assert {path: preset_values(made.draft.choice)[path] for path in want} == want
    made.set("adapter.rank", 5)
    made.choose(purpose="character", size="small")
    assert made.draft.shown["adapter.rank"] == 5
    made.reset("adapter.rank")
    assert made.draft.shown["adapter.rank"] == presets.find(family, "character", "small").settings["adapter"]["rank"]


def test_another_preset_tells_what_it_changed_and_what_stays(made):
    made.set("optimizer.learning_rate", 2e-4)
    made.choose(purpose="character", size="large")
    made.choose(purpose="style", size="small")
    assert made.changes[0]["schedule.warmup"] == (0.1, 0.0) and "Warmup 0.1 → 0" in made.header.about_preset.value
    made.choose(purpose="concept")
    made.set("adapter.rank", 7)
    made.choose(purpose="style", size="large")
    assert made.changes[1] == ["adapter.rank"] and "Kept as set by hand:</b> Rank" in made.header.about_preset.value


def test_the_images_there_are_choose_the_size_and_the_epochs(made, project):
    folder = project.dataset / "10_mofu"
    folder.mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
    made.header.dropdowns["purpose"].value = "character"
    assert (made.draft.choice.size, made.draft.choice.images) == ("small", 200)
    assert made.value.loop.epochs == 16
    assert Form(project).value == made.value
    Image.new("RGB", (8, 8)).save(folder / "more.png")
    again = Form(project)
    assert again.value == made.value and "Choose the preset again" in again.header.about_preset.value


def test_a_field_that_differs_from_what_its_run_began_with_says_so_until_that_is_put_back(made):
    begun = made.run()
    begun.record_file.write_text(json.dumps({"config": training_settings(made.value)}))
    made.set("sample.prompts", ("free",))
    assert "complete" in made.end.value
    made.set("adapter.rank", 20)
    assert "started with “16”" in trouble(made, "adapter.rank") and "1" in made.end.value
    made.choose(run="other")
    assert not trouble(made, "adapter.rank")
    made.choose(run=begun.name)
    made.reset("adapter.rank")
    assert not trouble(made, "adapter.rank") and made.run().name == begun.name


def test_families_keep_their_own_base_and_share_the_rest(made):
    made.set("data.trigger", "mofu")
    made.set("loss.noise_offset", 0.05)
    made.choose(family="anima")
    assert made.draft.shown["model.source"] == "" and made.draft.shown["data.trigger"] == "mofu"
    made.set("model.source", "owner/anima")
    assert made.value.loss.noise_offset == 0  # which Anima refuses
    made.choose(family="sd15")
    assert made.value.model.source == "demo" and made.value.loss.noise_offset == 0.05


def test_a_gpu_preset_for_this_machine_is_proposed_once(project, monkeypatch):
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "16 GB")
    first = Form(project)
    assert first.draft.choice.gpu_preset == "16 GB"
    first.choose(gpu_preset="")
    assert Form(project).draft.choice.gpu_preset == ""


def test_a_gpu_preset_whose_optimizer_fails_here_gets_another_and_says_so(made, monkeypatch):
    monkeypatch.setattr(
        machine, "why_unusable", lambda optimizer: "no bitsandbytes" if optimizer == "adamw8bit" else ""
    )
    made.choose(gpu_preset="8 GB")
    assert not made.draft.notes
    made.choose(family="sdxl")
    made.set("model.source", "demo")
    assert made.value.optimizer.name == "adamw" and "no bitsandbytes" in made.top.value
    made.set("optimizer.name", "adamw8bit")  # by hand it is left as it is
    made.choose(gpu_preset="8 GB")
    assert made.value.optimizer.name == "adamw8bit"


def test_a_gpu_gets_the_largest_preset_that_fits(tmp_path, monkeypatch):
    gpu_presets = models.config_class("sdxl").gpu_presets
    tool = tmp_path / "nvidia-smi"
    for told, gpu_preset in (("15360", "16 GB"), ("24564", "24 GB"), ("81559", "32 GB"), ("6144", ""), ("[N/A]", "")):
        tool.write_text(f"#!/bin/sh\necho '{told}'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        assert machine.fitting_gpu_preset(gpu_presets) == gpu_preset
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert machine.fitting_gpu_preset(gpu_presets) == ""
