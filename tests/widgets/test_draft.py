"""What is chosen for a run is on disk at once, survives damage, and says the same as code and as a command."""

import json
import os
import re
import shlex
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
    made = Form(project, "first")
    made.choose(family=family, gpu_preset="8 GB", purpose="character", size="small")
    made.set("model.source", "owner/it's a base")
    made.set("sample.prompts", ["1girl, it's: 'me'", "中文, [b]", "- no"])
    made.set("data.trigger", "true")
    made.set("sample.negative_prompt", "two\nlines: 'é'")
    made.set("optimizer.learning_rate", "3e-5")
    made.set("optimizer.args", {"weight_decay": 0.1, "betas": [0.9, 0.99]})
    made.set("stages", [{"loop": {"epochs": 2}, "schedule": {"name": "linear"}}])
    return made


# ---- on disk --------------------------------------------------------------------------------------------------------


def test_a_new_kernel_shows_the_same(family, project):
    made = filled(project, family)
    made.choose(expert=True)
    again = Form(project)
    assert again.draft.choice == made.draft.choice and again.value == made.value and not again.draft.notes
    assert set(again.rows) == set(made.rows)
    assert [row.control.read() for row in again.rows.values()] == [row.control.read() for row in made.rows.values()]


def test_every_change_is_on_disk_when_it_returns(project):
    made = Form(project)
    assert not made.draft.file.exists()  # looking changes nothing
    made.rows["adapter.rank"].control.slider.value = 64
    assert yaml.safe_load(made.draft.file.read_text("utf-8"))["settings"] == {"adapter": {"rank": 64}}
    made.rows["adapter.rank"].undo.click()
    assert yaml.safe_load(made.draft.file.read_text("utf-8"))["settings"] == {}
    made.header.run_name.value = "other"
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
def test_a_damaged_file_is_set_aside_with_a_note_and_not_lost(project, text):
    project.folder.mkdir()
    (project.folder / "settings.yaml").write_text(text)
    made = Form(project)
    (kept,) = project.folder.glob("settings-damaged-*.yaml")
    assert kept.read_text() == text
    assert kept.name in made.top.value
    made.set("adapter.rank", 8)
    assert Draft(project).by_hand == {"adapter.rank": 8}


def test_what_is_wrong_in_a_file_is_left_out_and_the_rest_is_kept(project):
    project.folder.mkdir()
    told = {
        "settings": {"adapter": {"rank": 8, "gone": 1}, "loop": {"epochs": "x"}},
        "models": {"sd15": {"source": "demo"}},
    }
    (project.folder / "settings.yaml").write_text(yaml.safe_dump(told))
    found = Draft(project)
    assert found.by_hand == {"model.source": "demo", "adapter.rank": 8}
    assert "adapter.gone" in str(found.notes) and "loop.epochs" in str(found.notes)
    assert list(project.folder.glob("settings-damaged-*.yaml"))


def test_a_new_machine_takes_the_settings_of_the_newest_run(project, monkeypatch):
    config = configure({"model": {"family": "sdxl", "source": "x"}, "adapter": {"rank": 9}}, "12 GB")
    save_config(project.run("mine"), config)
    monkeypatch.setattr(machine, "fitting_gpu_preset", lambda gpu_presets: "24 GB")  # of which the run knows nothing
    made = Form(project)
    assert made.value == config and made.draft.choice.run == "mine"


# ---- the same run ---------------------------------------------------------------------------------------------------


def test_its_code_makes_the_same_run_without_a_form(family, project, monkeypatch):
    made = filled(project, family)
    text = made.code()
    assert "widgets" not in text
    exec(compile(text, "code", "exec"), scope := {})
    assert scope["config"] == made.value
    assert read_config(project.run("first")) == made.value


def test_its_command_makes_the_same_run(family, project, monkeypatch):
    made = filled(project, family)
    (line,) = re.findall(r"^# (lorakit train .*)$", made.code(), re.M)
    begun = []
    monkeypatch.setattr("lorakit.training.loop.train", lambda run: begun.append(run) or iter(()))
    assert cli.main(shlex.split(line)[1:]) == 0
    assert read_config(project.run("first")) == made.value


def test_code_of_settings_that_are_no_run_yet_is_refused(project):
    with pytest.raises(ConfigError, match="model.source is missing"):
        Form(project).code()


def begin(run):
    """As if the run had trained."""
    run.record_file.write_text(json.dumps({"config": training_settings(read_config(run))}))


def test_a_run_that_has_begun_takes_free_settings_and_refuses_others_in_its_own_words(project):
    made = filled(project, "sd15")
    run = made.run()
    assert read_config(run) == made.value and run.name == "first"
    made.set("adapter.rank", 8)
    assert made.run() and read_config(run).adapter.rank == 8  # it has not begun
    begin(run)
    made.set("memory.gradient_checkpointing", False)
    assert read_config(made.run()).memory.gradient_checkpointing is False
    assert "has started" in made.header.about_run.value
    made.set("adapter.rank", 9)
    with pytest.raises(RunChanged, match="adapter.rank: 8 -> 9"):
        made.run()
    assert read_config(run).adapter.rank == 8
    assert "“Rank”: 8 -&gt; 9" in made.top.value and made.value.adapter.rank == 9
    made.choose(run="second")
    assert made.run().name == "second" and not made.top.value


def test_what_a_run_was_given_elsewhere_is_in_the_form_too(project):
    made = filled(project, "sd15")
    run = made.run()
    begin(run)
    longer = configure({**made.settings, "loop": {"epochs": 77}}, made.draft.choice.gpu_preset)
    run.config_file.write_text(to_yaml(longer))
    begin(run)  # which is given more epochs
    os.utime(run.config_file, ns=(time.time_ns() + 10**9,) * 2)
    assert made.run() and made.value == longer == Form(project).value
    assert made.rows["loop.epochs"].control.text.value == "77"
    later = time.time_ns() + 2 * 10**9
    made.set("loop.epochs", 5)
    os.utime(made.draft.file, ns=(later, later))
    with pytest.raises(RunChanged, match="loop.epochs: 77 -> 5"):
        made.run()
    assert Form(project).value.loop.epochs == 5  # chosen after that


def test_a_form_in_which_nothing_was_changed_takes_over_more_epochs_too(project):
    run = filled(project, "sd15").run()
    begin(run)
    (project.folder / drafts.FILE).unlink()
    opened = Form(project)
    longer = configure({**settings_of(run), "loop": {"epochs": 77}})
    run.config_file.write_text(to_yaml(longer))
    begin(run)
    assert opened.run() and opened.value == longer


def test_the_name_of_a_run_that_there_is_brings_its_settings(project):
    made = filled(project, "sd15")
    other = configure({"model": {"family": "sdxl", "source": "base"}, "adapter": {"network_weights": "a.safetensors"}})
    save_config(project.run("from-weights"), other)
    assert Form(project, "from-weights").value == other
    made.choose(run="from-weights")
    assert made.run().name == "from-weights" and made.value == read_config(project.run("from-weights")) == other
    assert made.header.family.value == "sdxl" and made.rows["model.source"].control.widget.value == "base"


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65])
def test_a_name_that_cannot_be_a_runs_is_explained_and_changes_nothing(project, name):
    made = filled(project, "sd15")
    made.header.run_name.value = name
    assert "cannot be a run" in made.header.problem.value and made.header.run_name.value == name
    assert Draft(project).choice.run == "first"
    with pytest.raises(UserError, match="cannot be a run"):
        made.run()
    with pytest.raises(ProjectError):
        made.choose(run=name)
    made.header.run_name.value = "right"
    assert made.run().name == "right" and not made.header.problem.value


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("adapter.rnk", 8, "Did you mean adapter.rank"),
        ("adapter.rank", "many", "an integer"),
        ("sample.shift", 3.0, "only flow models"),
        ("model.family", "sd9", "sd9"),
        ("adapter", {}, "not a setting"),
    ],
)
def test_what_cannot_be_set_is_refused_and_changes_nothing(project, path, value, told):
    made = Form(project)
    with pytest.raises(ConfigError, match=told):
        made.set(path, value)
    assert not made.draft.file.exists() and made.settings == {"model": {"family": "sd15"}}


@pytest.mark.parametrize("changes", [{"gpu_preset": "7 GB"}, {"purpose": "war"}, {"size": "huge"}, {"family": "sd9"}])
def test_a_choice_that_there_is_not_is_refused(project, changes):
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
    found = {
        h
        for family in models.names()
        for c, n in all_settings(family).values()
        for h in helps_of(c.__dataclass_fields__[n]).values()
    }
    assert found == set(i18n.translations()["rows"])


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
    made = Form(project)
    made.choose(expert=True)
    made.rows["schedule.name"].control.widget.label = "恒定（constant）"
    assert made.draft.by_hand == {"schedule.name": "constant"}


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
    made = Form(project)
    made.choose(family=family, expert=True, purpose="character")
    assert "触发词" in made.rows["data.trigger"].head.value
    for path, row in made.rows.items():
        assert re.search(r"[\u4e00-\u9fff]|Alpha|VAE|SNR|CFG", row.head.value), path
        assert re.search(r"[\u4e00-\u9fff]", row.note.value), path
    assert re.search(r"[\u4e00-\u9fff]", made.end.value + made.header.about_preset.value)


def test_a_form_without_a_front_end_is_shown_as_text_and_as_its_settings(project):
    made = filled(project, "sd15")
    assert repr(made) == f"Form({str(project.folder)!r}, run 'first', sd15)"
    assert configure(made.settings, made.draft.choice.gpu_preset) == made.value
    assert to_dict(made.value)["optimizer"]["learning_rate"] == 3e-5
