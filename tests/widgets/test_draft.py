"""The settings of a run are on disk at once, survive damage, and make the same run as code and as a command."""

import json
import os
import re
import subprocess
import time
from dataclasses import fields

import pytest
import yaml

from lorakit import cli, guide_tables, models, presets, taggers
from lorakit.config import ConfigError, choices_of, helps_of, label_of, to_dict, to_yaml
from lorakit.errors import UserError
from lorakit.prepare.crop import PrepareConfig
from lorakit.project import Project, ProjectError
from lorakit.run.config import configure, read_config, settings_of
from lorakit.run.create import save_config
from lorakit.run.resume import RunChanged, training_settings
from lorakit.tags.tagging import TaggingConfig
from widgets import i18n
from widgets.choices import LABELS
from widgets.project import draft as drafts
from widgets.project.draft import Draft, all_settings
from widgets.training import machine
from widgets.training.form import Form

OUTSIDE = {"prepare": PrepareConfig, "tagging": TaggingConfig}  # settings of forms that are no run's
OUTSIDE |= {name: taggers.config_class(name) for name in taggers.names()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "")
    monkeypatch.setattr(machine, "why_unusable", lambda optimizer: "")  # a process each
    return Project(tmp_path / "it's a project")


@pytest.fixture
def chinese():
    before = i18n.language()
    i18n.use("zh")
    yield
    i18n.use(before)


def filled(project, family):
    """A form with settings of every kind."""
    form = Form(project, "first")
    form.choose(family=family, gpu_preset="8 GB", purpose="character", size="small")
    form.set("model.source", "owner/it's a base")
    form.set("sample.prompts", ["1girl, it's: 'me'", "中文, [b]", "- no"])
    form.set("data.trigger", "true")
    form.set("sample.negative_prompt", "two\nlines: 'é'")
    form.set("optimizer.learning_rate", "3e-5")
    form.set("optimizer.args", {"weight_decay": 0.1, "betas": [0.9, 0.99]})
    form.set("stages", [{"loop": {"epochs": 2}, "schedule": {"name": "linear"}}])
    return form


# ---- on disk --------------------------------------------------------------------------------------------------------


def test_a_new_kernel_shows_the_same(family, project):
    form = filled(project, family)
    form.choose(expert=True)
    same = Form(project)
    assert same.draft.choice == form.draft.choice and same.value == form.value and not same.draft.notes
    assert set(same.rows) == set(form.rows)
    assert [row.control.read() for row in same.rows.values()] == [row.control.read() for row in form.rows.values()]


def test_every_change_is_on_disk_when_it_returns(project):
    form = Form(project)
    assert not form.draft.file.exists()  # looking changes nothing
    form.rows["adapter.rank"].control.slider.value = 64
    assert yaml.safe_load(form.draft.file.read_text("utf-8"))["settings"] == {"adapter": {"rank": 64}}
    form.rows["adapter.rank"].undo.click()
    assert yaml.safe_load(form.draft.file.read_text("utf-8"))["settings"] == {}
    form.header.run_name.value = "other"
    assert Form(project).draft.choice.run == "other"
    assert not list(project.folder.glob("*.part"))


def test_of_two_forms_the_later_write_wins_whole(project):
    one, two = Form(project), Form(project)
    one.set("adapter.rank", 8)
    two.set("loop.epochs", 3)
    assert Draft(project).by_hand == {"loop.epochs": 3}


@pytest.mark.parametrize(
    "text",
    [
        "{a: ",
        "[1, 2]",
        "run: 5",
        "family: unheard",
        "settings: 3",
        "strange: 1",
        "gpu_preset: 7 GB",
        "card: 7 GB",
        "\x00\x01",
        "run: ../x",
    ],
)
def test_a_damaged_file_is_renamed_with_a_note_and_not_lost(project, text):
    project.folder.mkdir()
    (project.folder / "settings.yaml").write_text(text)
    form = Form(project)
    (kept,) = project.folder.glob("settings-damaged-*.yaml")
    assert kept.read_text() == text
    assert kept.name in form.top.value
    form.set("adapter.rank", 8)
    assert Draft(project).by_hand == {"adapter.rank": 8}


def test_wrong_settings_in_a_file_are_left_out_and_the_rest_is_kept(project):
    project.folder.mkdir()
    stored = {
        "settings": {"adapter": {"rank": 8, "gone": 1}, "loop": {"epochs": "x"}},
        "models": {"sd15": {"source": "demo"}},
    }
    (project.folder / "settings.yaml").write_text(yaml.safe_dump(stored))
    read = Draft(project)
    assert read.by_hand == {"model.source": "demo", "adapter.rank": 8}
    assert "adapter.gone" in str(read.notes) and "loop.epochs" in str(read.notes)
    assert list(project.folder.glob("settings-damaged-*.yaml"))


def test_a_new_machine_takes_the_settings_of_the_newest_run(project, monkeypatch):
    config = configure({"model": {"family": "sdxl", "source": "x"}, "adapter": {"rank": 9}}, "12 GB")
    save_config(project.run("mine"), config)
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "24 GB")  # of which the run knows nothing
    form = Form(project)
    assert form.value == config and form.draft.choice.run == "mine"


# ---- the same run ---------------------------------------------------------------------------------------------------


def test_its_code_makes_the_same_run_without_a_form(family, project, monkeypatch):
    form = filled(project, family)
    text = form.code()
    assert "widgets" not in text
    trained = []
    monkeypatch.setattr("lorakit.training.loop.train", lambda run: trained.append(run) or iter(()))
    exec(compile(text, "code", "exec"), {})
    assert [run.name for run in trained] == ["first"]
    assert read_config(project.run("first")) == form.value


def test_its_command_makes_the_same_run(family, project, monkeypatch):
    form = filled(project, family)
    (line,) = re.findall(r"^# (lorakit train .*)$", form.code(), re.M)
    begun = []
    monkeypatch.setattr("lorakit.training.loop.train", lambda run: begun.append(run) or iter(()))
    # as bash reads it: line breaks in a text are written as $'…'
    arguments = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    assert cli.main(arguments.stdout.split("\0")[1:-1]) == 0
    assert read_config(project.run("first")) == form.value


def test_there_is_no_code_while_settings_are_missing(project):
    with pytest.raises(ConfigError, match="model.source is missing"):
        Form(project).code()


def begin(run):
    """As if the run had trained."""
    record = {"config": training_settings(read_config(run)), "precision": "fp32", "base": {}, "data": {}}
    run.record_file.write_text(json.dumps(record))


def test_a_trained_run_takes_free_settings_and_refuses_others(project):
    form = filled(project, "sd15")
    run = form.run()
    assert read_config(run) == form.value and run.name == "first"
    form.set("adapter.rank", 8)
    assert form.run() and read_config(run).adapter.rank == 8  # it has not begun
    begin(run)
    form.set("memory.gradient_checkpointing", False)
    assert read_config(form.run()).memory.gradient_checkpointing is False
    assert "has started" in form.header.about_run.value
    form.set("adapter.rank", 9)
    with pytest.raises(RunChanged, match="adapter.rank: 8 -> 9"):
        form.run()
    assert read_config(run).adapter.rank == 8
    assert "“Rank”: 8 -&gt; 9" in form.top.value and form.value.adapter.rank == 9
    form.choose(run="second")
    assert form.run().name == "second" and not form.top.value


def test_epochs_added_to_the_run_are_in_the_form_too(project):
    form = filled(project, "sd15")
    run = form.run()
    begin(run)
    longer = configure({**form.settings, "loop": {"epochs": 77}}, form.draft.choice.gpu_preset)
    run.config_file.write_text(to_yaml(longer))
    begin(run)  # which is given more epochs
    os.utime(run.config_file, ns=(time.time_ns() + 10**9,) * 2)
    assert form.run() and form.value == longer == Form(project).value
    assert form.rows["loop.epochs"].control.text.value == "77"
    later = time.time_ns() + 2 * 10**9
    form.set("loop.epochs", 5)
    os.utime(form.draft.file, ns=(later, later))
    with pytest.raises(RunChanged, match="loop.epochs: 77 -> 5"):
        form.run()
    assert Form(project).value.loop.epochs == 5  # chosen after that


def test_an_unchanged_form_takes_over_added_epochs_too(project):
    run = filled(project, "sd15").run()
    begin(run)
    (project.folder / drafts.FILE).unlink()
    opened = Form(project)
    longer = configure({**settings_of(run), "loop": {"epochs": 77}})
    run.config_file.write_text(to_yaml(longer))
    begin(run)
    assert opened.run() and opened.value == longer


def test_the_name_of_an_existing_run_brings_its_settings(project):
    form = filled(project, "sd15")
    other = configure({"model": {"family": "sdxl", "source": "base"}, "adapter": {"network_weights": "a.safetensors"}})
    save_config(project.run("from-weights"), other)
    assert Form(project, "from-weights").value == other
    form.choose(run="from-weights")
    assert form.run().name == "from-weights" and form.value == read_config(project.run("from-weights")) == other
    assert form.header.family.value == "sdxl" and form.rows["model.source"].control.widget.value == "base"


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65])
def test_an_impossible_run_name_is_explained_and_changes_nothing(project, name):
    form = filled(project, "sd15")
    form.header.run_name.value = name
    assert "cannot be a run" in form.header.problem.value and form.header.run_name.value == name
    assert Draft(project).choice.run == "first"
    with pytest.raises(UserError, match="cannot be a run"):
        form.run()
    with pytest.raises(ProjectError):
        form.choose(run=name)
    form.header.run_name.value = "right"
    assert form.run().name == "right" and not form.header.problem.value


@pytest.mark.parametrize(
    "path, value, reason",
    [
        ("adapter.rnk", 8, "Did you mean adapter.rank"),
        ("adapter.rank", "many", "an integer"),
        ("sample.shift", 3.0, "only flow models"),
        ("model.family", "sd9", "sd9"),
        ("adapter", {}, "not a setting"),
    ],
)
def test_a_setting_that_cannot_be_set_is_refused_and_changes_nothing(project, path, value, reason):
    form = Form(project)
    with pytest.raises(ConfigError, match=reason):
        form.set(path, value)
    assert not form.draft.file.exists() and form.settings == {"model": {"family": "sd15"}}


@pytest.mark.parametrize("changes", [{"gpu_preset": "7 GB"}, {"purpose": "war"}, {"size": "huge"}, {"family": "sd9"}])
def test_an_unknown_choice_is_refused(project, changes):
    with pytest.raises(ConfigError):
        Form(project).choose(**changes)
    assert Draft(project).choice == Draft(Project(project.folder / "none")).choice


# ---- in two languages -----------------------------------------------------------------------------------------------


def test_every_setting_has_label_and_help_in_chinese_and_none_is_left_over():
    translated, expected = i18n.translations()["settings"], set()
    for family in models.names():
        expected |= {path.replace("model.", f"{family}.") for path in all_settings(family)}
    expected |= {f"{owner}.{f.name}" for owner, c in OUTSIDE.items() for f in fields(c) if not f.metadata["ui"].hidden}
    assert set(translated) == expected
    for label, help in translated.values():
        assert label.strip() and help.strip()


def test_every_setting_has_a_label_and_a_help_in_english(family):
    for path, (config_class, name) in all_settings(family).items():
        f = config_class.__dataclass_fields__[name]
        assert label_of(f).strip() and f.metadata["help"].strip() and not f.metadata["help"].endswith("."), path


def test_every_row_of_a_registry_has_its_help_in_chinese():
    helps = {
        h
        for family in models.names()
        for c, n in all_settings(family).values()
        for h in helps_of(c.__dataclass_fields__[n]).values()
    }
    assert helps == set(i18n.translations()["rows"])


def test_every_choice_has_a_label_and_every_label_its_chinese():
    settings = {(c, n) for family in models.names() for c, n in all_settings(family).values()}
    settings |= {(c, f.name) for c in OUTSIDE.values() for f in fields(c)}
    chosen = {v for c, n in settings for v in choices_of(c.__dataclass_fields__[n]) or () if isinstance(v, str)}
    shapes = {value for value in chosen if re.fullmatch(r"\d+x\d+", value)}
    assert chosen - shapes - set(LABELS) == {".txt", ".caption", "bf16", "fp16", "fp32"}, "a label for each in choices"
    names = {"LoRA", "LoHa", "LoKr", "AdamW", "Prodigy", "Min-SNR", "Sigmoid", "Logit-normal", "Euler", "Euler a"}
    names |= {"DDIM", "DPM++ 2M", "kohya", "ComfyUI", "Stable Diffusion", "Anima", "ONNX Runtime", "PyTorch"}
    assert set(LABELS.values()) - names <= set(i18n.translations()["choices"])


def test_dropdowns_show_labels_and_store_values(project, chinese):
    form = Form(project)
    form.choose(expert=True)
    form.rows["schedule.name"].control.widget.label = "恒定（constant）"
    assert form.draft.by_hand == {"schedule.name": "constant"}


def test_every_advice_is_in_chinese_and_none_is_left_over():
    texts = {row.why for row in presets.PRESETS}
    for table in guide_tables.TABLES:
        texts |= {table.title, table.note, *table.columns, *(cell for row in table.rows for cell in row)}
    names = {"AdaFactor", "DAdaptAdam", "SDXL", "UNet", "adamw, adamw8bit", "alpha", "constant", "prodigy"}
    names |= {"min_snr_gamma", "noise_offset"} | {text for text in texts if re.match(r"\w+: true,", text)}
    prose = {text for text in texts if re.search(r"[A-Za-z]{3}", text)} - names
    left = set(i18n.translations()["advice"]) - texts
    assert not left and not prose - set(i18n.translations()["advice"])


def test_the_form_speaks_chinese(family, project, chinese):
    form = Form(project)
    form.choose(family=family, expert=True, purpose="character")
    assert "触发词" in form.rows["data.trigger"].head.value
    for path, row in form.rows.items():
        assert re.search(r"[\u4e00-\u9fff]|Alpha|VAE|SNR|CFG", row.head.value), path
        assert re.search(r"[\u4e00-\u9fff]", row.note.value), path
    assert re.search(r"[\u4e00-\u9fff]", form.end.value + form.header.about_preset.value)


def test_a_form_without_a_front_end_is_shown_as_text_and_as_its_settings(project):
    form = filled(project, "sd15")
    assert repr(form) == f"Form({str(project.folder)!r}, run 'first', sd15)"
    assert configure(form.settings, form.draft.choice.gpu_preset) == form.value
    assert to_dict(form.value)["optimizer"]["learning_rate"] == 3e-5
