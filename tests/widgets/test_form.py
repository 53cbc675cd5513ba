"""The form is made from the configs, is on disk at every change, and makes the same run as its code."""

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
from lorakit.machine.gpu import Gpu
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project
from lorakit.run import config as runs
from lorakit.run.config import RunConfig
from lorakit.run.resume import training_settings
from widgets import i18n
from widgets.page import AMBER
from widgets.project import draft
from widgets.project.draft import all_settings, preset_values, supported_settings
from widgets.training import machine
from widgets.training.form import Form
from widgets.training.form import dataset_size as draft_size

CHOICES = ("run", "family", "gpu_preset", "purpose", "size", "expert")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.fixture
def form(project, monkeypatch):
    """A form whose settings are complete."""
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "")
    tried = machine.why_unusable  # a process each
    monkeypatch.setattr(machine, "why_unusable", lambda optimizer: "" if optimizer == "adamw8bit" else tried(optimizer))
    form = Form(project)
    form.set("model.source", "demo")
    return form


def widgets_of(form, kind):
    """All widgets of a kind in a form, also in groups."""
    todo, seen = [form.widget], []
    while todo:
        widget = todo.pop()
        seen.append(widget)
        todo += getattr(widget, "children", ())
    return [widget for widget in seen if isinstance(widget, kind)]


def trouble(form, path):
    return form.rows[path].problem


# ---- form from the configs ------------------------------------------------------------------------------------------


def test_beginners_see_eight_fields_and_experts_every_setting(family, form):
    form.choose(family=family)
    assert set(form.rows) | {"run", "preset"} == {
        "run",
        "model.source",
        "preset",
        "data.trigger",
        "adapter.rank",
        "optimizer.learning_rate",
        "loop.epochs",
        "sample.prompts",
    }
    form.choose(expert=True)
    assert set(supported_settings(family)) - set(form.rows) == {"schedule.past", "data.reading"}, (
        "which the kit alone writes"
    )
    refused = {path for path in all_settings(family) if path not in supported_settings(family)}
    assert all(path in models.config_class(family).unsupported or path.endswith("_lr") for path in refused)


def test_kinds_of_settings_have_their_widgets(form):
    form.choose(expert=True)
    kinds = {path: type(row.control.widget) for path, row in form.rows.items()}
    assert type(form.rows["adapter.rank"].control.slider) is ipywidgets.IntSlider
    assert type(form.rows["adapter.alpha"].control.slider) is ipywidgets.FloatSlider
    assert type(form.rows["optimizer.learning_rate"].control.slider) is ipywidgets.FloatLogSlider
    for path in ("adapter.type", "optimizer.name", "schedule.name", "loss.weighting", "sample.sampler"):
        assert kinds[path] is ipywidgets.Dropdown
    assert kinds["data.enable_bucket"] is ipywidgets.Checkbox
    assert kinds["loop.seed"] is ipywidgets.IntText
    assert kinds["sample.prompts"] is kinds["optimizer.args"] is kinds["stages"] is ipywidgets.Textarea


@dataclass(frozen=True, kw_only=True)
class NewConfig(Config):
    """A part that the form does not know."""

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
    form = Form(project)
    assert "new.colour" in form.rows
    form.choose(expert=True)
    assert {f"new.{f.name}" for f in fields(NewConfig)} - set(form.rows) == {"new.noted"}
    assert "km/h" in form.rows["new.speed"].head.value
    assert form.rows["new.twice"].widget.layout.display == "none"
    form.set("new.colour", "blue")
    assert form.rows["new.twice"].widget.layout.display == ""
    form.rows["new.table"].control.widget.value = "{a: 1e-4}"
    form.rows["new.names"].control.widget.value = "one\n\n two \n"
    assert form.settings["new"] == {"colour": "blue", "table": {"a": 1e-4}, "names": ["one", "two"]}
    factor = form.rows["adapter.factor"]
    assert factor.widget.layout.display == "none"
    form.rows["adapter.type"].control.widget.value = "lokr"
    assert "a Kronecker product, trained" in form.rows["adapter.type"].note.value
    assert factor.widget.layout.display == ""
    form.set("adapter.factor", 8)
    form.set("model.source", "demo")
    assert form.value.adapter == TrainedLokr.Config(type="lokr", factor=8) and form.value.new.names == ("one", "two")
    form.set("adapter.type", "lora")
    assert form.value.adapter.type == "lora" and "factor" not in form.settings["adapter"]


# ---- what is typed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed, rate", [("1e-4", 1e-4), ("0.0003", 3e-4), ("0", 0.0), ("1", 1.0), ("4.5E-5", 4.5e-5)])
def test_a_learning_rate_is_typed_or_slid(form, typed, rate):
    form.set("optimizer.text_encoder_lr", 1e-5)  # so that 0 leaves something to train
    row = form.rows["optimizer.learning_rate"]
    row.control.text.value = typed
    assert form.value.optimizer.learning_rate == rate
    assert row.control.slider.value == pytest.approx(rate or 10**row.control.slider.min)
    assert row.control.text.value == typed  # as it was typed


def test_the_left_end_of_a_learning_rate_is_off_and_its_other_places_have_two_digits(form):
    form.choose(expert=True)
    row = form.rows["optimizer.text_encoder_lr"]
    assert form.value.optimizer.text_encoder_lr == 0 and row.control.text.value == "0"
    row.control.slider.value = 10**-4.35
    assert form.value.optimizer.text_encoder_lr == 4.5e-5 and row.control.text.value == "4.5e-5"
    row.control.slider.value = 10**row.control.slider.min
    assert form.value.optimizer.text_encoder_lr == 0


def test_a_page_that_rounds_a_slider_to_its_step_changes_nothing(form):
    form.set("adapter.rank", 10)
    form.set("optimizer.learning_rate", 1.23e-4)
    rate = form.rows["optimizer.learning_rate"].control.slider
    form.rows["adapter.rank"].control.slider.value, rate.value = 12, 10**-3.9
    assert (form.value.adapter.rank, form.value.optimizer.learning_rate) == (10, 1.23e-4)
    form.rows["adapter.rank"].control.slider.value, rate.value = 16, 10**-3.5
    assert (form.value.adapter.rank, form.value.optimizer.learning_rate) == (16, 3.2e-4)


def test_a_value_beyond_a_slider_moves_its_end(form):
    form.set("adapter.rank", 256)
    slider = form.rows["adapter.rank"].control.slider
    assert slider.max == slider.value == form.value.adapter.rank == 256


@pytest.mark.parametrize(
    "path, typed, problem",
    [
        ("optimizer.learning_rate", "fast", "expected a number"),
        ("optimizer.learning_rate", "nan", "0 to 10"),
        ("optimizer.learning_rate", "1e999", "0 to 10"),
        ("adapter.rank", "4000", "1 to 768"),
        ("adapter.rank", "inf", "expected an integer"),
        ("adapter.rank", "9" * 400, "1 to 768"),
    ],
)
def test_a_wrong_value_is_explained_at_its_field_and_the_last_right_one_stays(form, project, path, typed, problem):
    before, on_disk = form.draft.value, form.draft.file.read_text()
    text, slider = form.rows[path].control.text, form.rows[path].control.slider
    ends = slider.min, slider.max
    text.value = typed
    assert (slider.min, slider.max) == ends
    assert problem in trouble(form, path) and text.value == typed
    assert form.draft.value == before and form.draft.file.read_text() == on_disk
    with pytest.raises(ConfigError, match=problem):
        form.value  # noqa: B018
    form.set("data.trigger", "mofu")  # another change does not hide it
    assert problem in trouble(form, path) and text.value == typed
    assert not trouble(Form(project), path)  # a new page shows the last right value
    text.value = "8" if path == "adapter.rank" else "1e-3"
    assert not trouble(form, path) and not trouble(form, "data.trigger")
    assert form.value is not None


def test_a_conflict_is_shown_at_its_field_or_at_the_top(form):
    form.choose(expert=True)
    form.set("data.resolution", 1088)
    assert "above" in trouble(form, "data.resolution")
    form.set("data.resolution", 512)
    form.set("optimizer.name", "prodigy")
    form.set("optimizer.text_encoder_lr", 1e-5)
    assert "optimizer: the learning rates differ" in form.top.value
    form.reset("optimizer.name")
    assert not form.top.value and not trouble(form, "data.resolution")


def test_what_most_likely_wastes_the_run_is_shown_at_its_field_and_a_run_can_begin_all_the_same(form, project):
    (project.folder / "dataset").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8)).save(project.folder / "dataset" / f"{number}.png")
    form.images = draft_size(form.draft)
    form.choose(expert=True)
    for path, value, shown in (
        ("optimizer.learning_rate", 1.0, "far above it training diverges"),
        ("adapter.rank", 8, ""),
        ("schedule.warmup", 4000.0, "never gets to its full value"),
        ("save.every_epochs", 11, "and the run has 10 epochs"),
    ):
        form.set(path, value)
        assert shown in trouble(form, path) and (not shown or AMBER in trouble(form, path))
    assert "above “Rank”" in trouble(form, "adapter.alpha") and "never gets to" in form.top.value
    assert "complete" in form.end.value and form.value.adapter.rank == 8


def test_every_optimizer_can_be_chosen_whatever_its_package_prints(project, monkeypatch):
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "")
    form = Form(project)
    form.choose(expert=True)
    for name in reversed(OPTIMIZERS):
        form.rows["optimizer.name"].control.widget.value = name
        assert trouble(form, "optimizer.name") == "" and form.draft.by_hand["optimizer.name"] == name


def test_a_process_that_crashes_is_the_reason(monkeypatch):
    monkeypatch.setattr(machine, "TRIAL", "import os; print('all is well', flush=True); os._exit(3)")
    assert machine.why_unusable("prodigy") == "prodigy ends the process with status 3 on this machine"


def test_an_optimizer_whose_package_does_not_work_here_is_refused_with_the_reason(form, monkeypatch, tmp_path):
    (tmp_path / "prodigyopt.py").write_text("raise ImportError('built for another machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    form.choose(expert=True)
    form.rows["optimizer.name"].control.widget.value = "prodigy"
    assert "built for another machine" in trouble(form, "optimizer.name")
    assert "optimizer.name" not in form.draft.by_hand
    form.rows["optimizer.name"].control.widget.value = "adamw8bit"
    assert not trouble(form, "optimizer.name") and form.draft.by_hand["optimizer.name"] == "adamw8bit"


def test_a_problem_in_a_closed_group_is_shown_at_the_top(form):
    form.set("data.resolution", 1088)
    assert "above" in form.top.value


def test_no_setting_is_called_by_its_dotted_name_on_the_screen(form):
    form.choose(family="anima", expert=True)
    assert "Choose this first: Base model" in trouble(form, "model.source")
    form.choose(family="sd15")
    form.set("data.resolution", 1088)
    form.set("optimizer.name", "prodigy")
    form.set("optimizer.text_encoder_lr", 1e-5)
    form.rows["adapter.rank"].control.text.value = "4000"
    form.refuse("", "adapter.rank: 8 -> 9")
    shown = form.top.value + form.end.value + "".join(trouble(form, path) for path in form.rows)
    assert "“Rank” is 4000" in shown and "“Rank”: 8" in shown and "“Resolution” is 1088" in shown
    assert not re.findall(r"\b[a-z]+\.[a-z]+_\w+|text_encoder_lr|data\.\w+", shown)


def test_text_that_is_no_yaml_is_explained(form):
    form.choose(expert=True)
    area = form.rows["optimizer.args"].control.widget
    area.value = "{a: "
    assert "not YAML" in trouble(form, "optimizer.args")
    for text in ("5", "weight_decay: 2020-01-01", "weight_decay: .nan", "1: 2"):
        area.value = text
        assert "expected " in trouble(form, "optimizer.args")
    area.value = "5"
    assert "expected a table of names and values (numbers, texts in quotes, lists)" in trouble(form, "optimizer.args")
    area.value = "{weight_decay: 1e-2}"
    assert form.value.optimizer.args == {"weight_decay": 0.01} and not trouble(form, "optimizer.args")


def test_a_typed_line_break_stays(form):
    area = form.rows["sample.prompts"].control.widget
    area.value = "a girl\n"
    assert area.value == "a girl\n" and form.value.sample.prompts == ("a girl",)


def test_every_setting_shows_what_was_set(family, form):
    form.choose(family=family, expert=True)
    for path, row in form.rows.items():
        assert row.control.read() == form.draft.shown[path], path


# ---- presets, GPU presets, families ----------------------------------------------------------------------------------


def test_values_set_by_hand_win_over_presets_and_the_family(family, form):
    form.choose(family=family)
    config_class = models.config_class(family)
    for gpu_preset in config_class.gpu_presets:
        form.choose(gpu_preset=gpu_preset, purpose="style", size="large")
        row = presets.find(family, "style", "large")
        expected = {**draft.flattened(config_class.defaults), **draft.flattened(config_class.gpu_presets[gpu_preset])}
        expected |= draft.flattened(row.settings)
        assert {path: preset_values(form.draft.choice)[path] for path in expected} == expected
    form.set("adapter.rank", 5)
    form.choose(purpose="character", size="small")
    assert form.draft.shown["adapter.rank"] == 5
    form.reset("adapter.rank")
    assert form.draft.shown["adapter.rank"] == presets.find(family, "character", "small").settings["adapter"]["rank"]


def test_another_preset_shows_what_it_changed_and_what_it_kept(form):
    form.set("optimizer.learning_rate", 2e-4)
    form.choose(purpose="character", size="large")
    form.choose(purpose="style", size="small")
    assert form.changes[0]["schedule.warmup"] == (0.1, 0.0) and "Warmup 0.1 → 0" in form.header.about_preset.value
    form.choose(purpose="concept")
    form.set("adapter.rank", 7)
    form.choose(purpose="style", size="large")
    assert form.changes[1] == ["adapter.rank"] and "Kept as set by hand:</b> Rank" in form.header.about_preset.value


def test_the_number_of_images_chooses_the_size_and_the_epochs(form, project):
    folder = project.dataset / "10_mofu"
    folder.mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
    form.header.dropdowns["purpose"].value = "character"
    assert (form.draft.choice.size, form.draft.choice.images) == ("small", 200)
    assert form.value.loop.epochs == 16
    assert Form(project).value == form.value
    Image.new("RGB", (8, 8)).save(folder / "more.png")
    again = Form(project)
    assert again.value == form.value and "Choose the preset again" in again.header.about_preset.value


def test_a_field_that_differs_from_its_trained_run_says_so_until_it_is_changed_back(form):
    begun = form.run()
    record = {"config": training_settings(form.value), "precision": "fp32", "base": {}, "data": {}}
    begun.record_file.write_text(json.dumps(record))
    form.set("sample.prompts", ("free",))
    assert "complete" in form.end.value
    form.set("adapter.rank", 20)
    assert "started with “16”" in trouble(form, "adapter.rank") and "1" in form.end.value
    form.choose(run="other")
    assert not trouble(form, "adapter.rank")
    form.choose(run=begun.name)
    form.reset("adapter.rank")
    assert not trouble(form, "adapter.rank") and form.run().name == begun.name


def test_families_keep_their_own_base_and_share_the_rest(form):
    form.set("data.trigger", "mofu")
    form.set("loss.noise_offset", 0.05)
    form.choose(family="anima")
    assert form.draft.shown["model.source"] == "" and form.draft.shown["data.trigger"] == "mofu"
    form.set("model.source", "owner/anima")
    assert form.value.loss.noise_offset == 0  # which Anima refuses
    form.choose(family="sd15")
    assert form.value.model.source == "demo" and form.value.loss.noise_offset == 0.05


def test_a_gpu_preset_for_this_machine_is_proposed_once(project, monkeypatch):
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "16 GB")
    first = Form(project)
    assert first.draft.choice.gpu_preset == "16 GB"
    first.choose(gpu_preset="")
    assert Form(project).draft.choice.gpu_preset == ""


def test_a_gpu_gets_the_largest_preset_for_its_memory(monkeypatch):
    gpu_presets = models.config_class("sdxl").gpu_presets
    cases = {15_835_660_288: "16 GB", 23_787_000_000: "24 GB", 84_930_000_000: "40 GB", 6_225_000_000: "6 GB", 4e9: ""}
    for memory, gpu_preset in cases.items():
        monkeypatch.setattr(machine, "at_hand", lambda memory=memory: Gpu("A GPU", memory, (8, 0)))
        assert machine.fitting_gpu_preset(gpu_presets) == gpu_preset
    monkeypatch.setattr(machine, "at_hand", lambda: None)
    assert machine.fitting_gpu_preset(gpu_presets) == ""


def test_gpu_presets_name_common_gpus_in_both_languages(form):
    labels = [text for text, _ in form.header.dropdowns["gpu_preset"].options]
    i18n.use("zh")
    try:
        form.header.show("")
        chinese = [text for text, _ in form.header.dropdowns["gpu_preset"].options]
    finally:
        i18n.use("en")
    for name in ("T4", "L4", "A100"):
        assert sum(name in text for text in labels) == sum(name in text for text in chinese) == 1
    assert "16 GB VRAM (T4, RTX 4060 Ti, 4080)" in labels and any("显存" in text for text in chinese)
