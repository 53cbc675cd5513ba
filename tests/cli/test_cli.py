"""The terminal: every verb does what it says, and bad input ends with status 2 and one readable message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.cli import main
from lorakit.config import to_yaml
from lorakit.events import Saved, Started, Stepped, read
from lorakit.project import Project
from lorakit.run.config import configure, read_config


@pytest.fixture(scope="module", autouse=True)
def one_memory_of_digests(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.save_sd15(tmp_path_factory.mktemp("cli") / "base")


@pytest.fixture(scope="module")
def settings(base, tmp_path_factory) -> Path:
    """A YAML file with the settings of a run of 4 steps."""
    file = tmp_path_factory.mktemp("settings") / "settings.yaml"
    changes = {"loop": {"epochs": 1, "batch_size": 2}, "sample": {"prompts": ["mofu, girl"]}}
    file.write_text(yaml.safe_dump(tiny.settings(base, **changes)))
    return file


def new_project(folder: Path) -> Path:
    tiny.save_images(folder / "dataset")
    return folder


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with images and no run."""
    return new_project(tmp_path / "project")


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory) -> Path:
    """A project whose run `run1` is complete; tests leave it as it is."""
    folder = new_project(tmp_path_factory.mktemp("trained") / "project")
    assert main(["train", str(folder), "--config", str(settings)]) == 0
    return folder


def refused(capsys, *arguments: str) -> str:
    """The one message that a command with bad input ends with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("lorakit: ") and err.endswith("\n") and "Traceback" not in out + err
    assert out == ""
    return err


# ---- train -----------------------------------------------------------------------------------------------------------


def test_train_trains_and_the_same_command_again_finds_it_finished(project, settings, capsys):
    assert main(["train", str(project), "--config", str(settings), "--run", "mine"]) == 0
    out = capsys.readouterr().out
    run = Project(project).run("mine")
    assert run.lora_steps() == [4]
    for shown in ("7 images, step 0 of 4 (4 per epoch), fp32 on cpu", "saved step 4", "finished after step 4"):
        assert shown in out
    assert "sample samples/000004-00.png" in out and (run.samples / "000004-00.png").exists()
    assert main(["train", str(project), "--run", "mine"]) == 0  # what it was started with is remembered
    assert "step 4 of 4" in capsys.readouterr().out
    assert len([event for _, event in read(run.log) if isinstance(event, Stepped)]) == 4


def test_train_resumes_from_the_newest_state(project, settings):
    command = ["train", str(project), "--config", str(settings), "--set", "save.every_steps=1"]
    assert main(command) == 0
    run = Project(project).run("run1")
    whole = load_file(run.lora_file(4))
    (run.states / "00000004" / "state.pt").write_bytes(b"")
    run.lora_file(4).unlink()
    assert main(command) == 0
    started = [event.step for _, event in read(run.log) if isinstance(event, Started)]
    assert started == [0, 3]
    again = load_file(run.lora_file(4))
    assert whole.keys() == again.keys() and all(whole[name].equal(again[name]) for name in whole)


def test_set_changes_single_settings(project, settings, base):
    source = f"model.source={base}"
    changes = ["adapter.rank=3", "loop.steps=1", "optimizer.learning_rate=1e-4", "sample.prompts=[]", source]
    flags = [part for change in changes for part in ("--set", change)]
    assert main(["train", str(project), "--config", str(settings), *flags]) == 0
    config = read_config(Project(project).run("run1"))
    assert config.adapter.rank == 3 and config.optimizer.learning_rate == 1e-4 and config.sample.prompts == ()
    assert Project(project).run("run1").lora_steps() == [1]


def test_train_needs_no_file_when_everything_is_set(project, base):
    changes = ["data.resolution=64", "data.min_bucket_reso=64", "data.max_bucket_reso=64", "loop.steps=1"]
    flags = [part for change in (f"model.source={base}", *changes) for part in ("--set", change)]
    assert main(["train", str(project), *flags]) == 0
    assert Project(project).run("run1").lora_steps() == [1]


def test_the_terminal_writes_the_config_that_code_writes(trained, settings):
    written = (trained / "runs" / "run1" / "config.yaml").read_text()
    assert written == to_yaml(configure(yaml.safe_load(settings.read_text())))


def test_settings_that_do_not_decide_the_result_may_change_on_resume(project, settings):
    assert main(["train", str(project), "--config", str(settings)]) == 0
    assert main(["train", str(project), "--set", "save.dtype=fp32", "--set", "sample.prompts=[]"]) == 0
    assert read_config(Project(project).run("run1")).save.dtype == "fp32"


def test_a_setting_may_be_fixed_before_the_first_step(project, settings, base, capsys):
    shown = refused(capsys, "train", project, "--config", settings, "--set", "model.source=/no/such/model")
    assert "/no/such/model" in shown
    assert main(["train", str(project), "--config", str(settings)]) == 0


# ---- the other verbs -------------------------------------------------------------------------------------------------


def test_status_tells_people_and_machines_where_runs_are(trained, capsys):
    assert main(["status", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "run1" in out and "finished" in out and "step 4 of 4" in out
    assert main(["status", str(trained), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["name"], run["state"], run["step"], run["steps"], run["saved_step"]) == ("run1", "finished", 4, 4, 4)
    assert run["loras"] == ["lora/run1-000004.safetensors"]


def test_status_of_a_project_without_runs(project, capsys):
    assert main(["status", str(project)]) == 0
    assert "No runs yet" in capsys.readouterr().out
    assert main(["status", str(project), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_grid_generates_its_images_and_resumes(trained, capsys):
    command = ["grid", str(trained), "--x", "checkpoint", "--y", "strength=0.5,1", "--name", "one"]
    assert main(command) == 0
    out = capsys.readouterr().out
    folder = trained / "runs" / "run1" / "grids" / "one"
    assert "image 4 of 4" in out and str(folder / "grid.png") in out and (folder / "grid.png").exists()
    record = json.loads((folder / "grid.json").read_text())
    assert record["x"] == {"name": "checkpoint", "values": ["off", 4]}
    assert record["y"] == {"name": "strength", "values": [0.5, 1.0]}
    assert {cell["prompt"] for cell in record["cells"]} == {"mofu, girl"}
    cells = {file: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}
    assert main(command) == 0
    assert {file: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()} == cells


def test_grid_takes_prompts_seeds_checkpoints_and_a_look(trained):
    axes = ["--x", "prompt=girl, hat | boy", "--y", "seed=1,2", "--name", "two", "--set", "steps=1"]
    assert main(["grid", str(trained), *axes]) == 0
    record = json.loads((trained / "runs" / "run1" / "grids" / "two" / "grid.json").read_text())
    assert record["x"]["values"] == ["girl, hat", "boy"] and record["y"]["values"] == [1, 2]
    assert record["sampling"]["steps"] == 1 and record["sampling"]["width"] == 64
    axes = ["--x", "checkpoint=off,4", "--y", "seed=3", "--prompt", "hat", "--name", "three", "--set", "steps=1"]
    assert main(["grid", str(trained), *axes]) == 0
    record = json.loads((trained / "runs" / "run1" / "grids" / "three" / "grid.json").read_text())
    assert {cell["prompt"] for cell in record["cells"]} == {"hat"} and record["x"]["values"] == ["off", 4]


def test_export_checks_a_file_and_copies_it(trained, tmp_path, capsys):
    made = trained / "runs" / "run1" / "lora" / "run1-000004.safetensors"
    assert named(made) == {"project-run1"}  # not run1, as in every project
    targets = {
        tmp_path: tmp_path / "project-run1-000004.safetensors",
        tmp_path / "new" / "folder": tmp_path / "new" / "folder" / "project-run1-000004.safetensors",
        tmp_path / "other" / "mofu.safetensors": tmp_path / "other" / "mofu.safetensors",
    }
    for output, file in targets.items():
        for _ in range(2):  # the same bytes may be written again
            assert main(["export", str(trained), "--output", str(output), "--step", "4"]) == 0
            assert f"{file}: 48 modules matched" in capsys.readouterr().out
        assert [*file.parent.glob(".*")] == []
    assert targets[tmp_path].read_bytes() == made.read_bytes()
    own, copy = load_file(made), load_file(file)
    assert own.keys() == copy.keys() and all(own[name].equal(copy[name]) for name in own)
    assert named(file) == {"mofu"}  # the name that the user gave


def named(file: Path) -> set[str]:
    with safe_open(file, "np") as opened:
        return {opened.metadata()[key] for key in ("ss_output_name", "modelspec.title")}


def test_export_replaces_no_other_file(trained, tmp_path, capsys):
    other = tmp_path / "mofu.safetensors"
    other.write_bytes(b"of another project")
    refusal = refused(capsys, "export", trained, "--output", other)
    assert str(other) in refusal and "mofu-2.safetensors" in refusal and other.read_bytes() == b"of another project"
    assert [*tmp_path.iterdir()] == [other]


def test_doctor_tells_versions_precision_and_disk(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "not" / "there")]) == 0
    out = capsys.readouterr().out
    for name in ("Python", "torch", "diffusers", "GPU", "precision", "memory", "disk"):
        assert any(line.startswith(name + " ") for line in out.splitlines())


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_a_missing_project_is_refused_and_not_made(tmp_path, settings, capsys):
    for verb in ("train", "status", "grid", "export"):
        shown = refused(capsys, verb, tmp_path / "nowhere", *(["--config", settings] if verb == "train" else []))
        assert f"{tmp_path / 'nowhere'} does not exist" in shown
    assert not (tmp_path / "nowhere").exists()


def test_an_unknown_run_is_refused_with_the_known_ones(trained, capsys):
    for verb in ("grid", "export"):
        assert "no run 'other'" in (shown := refused(capsys, verb, trained, "--run", "other")) and "run1" in shown
    assert "cannot be a run's name" in refused(capsys, "grid", trained, "--run", "../x")


SETTINGS = (
    ("adapter.rnak=4", "adapter.rnak is not a setting. Did you mean adapter.rank?"),
    ("adpter.rank=4", "adpter is not a setting. Did you mean adapter?"),
    ("adapter.rank=0", "rank is 0"),
    ("adapter.rank=many", "rank is 'many'"),
    ("adapter.type=lroa", "Did you mean lora?"),
    ("adapter.rank.high=4", "adapter.rank.high is not a setting"),
    ("loop.epochs=[1", "expected an integer"),
    ("optimizer.name=adam", "allowed are"),
    ("loop.precision=fp16", "needs a GPU"),
    ("model.family=sd99", "known families are"),
    ("sample.width=100", "multiple of 8"),
    ("adapter.rank", "--set adapter.rank: write it as key=value"),
    ("model.clip_skip=4", "text encoder of this base model has 3 layers"),
)


@pytest.mark.parametrize("change, expected", SETTINGS)
def test_wrong_settings_are_refused_with_a_hint(project, settings, capsys, change, expected):
    if change == "loop.precision=fp16" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert expected in refused(capsys, "train", project, "--config", settings, "--set", change)
    assert not Project(project).run("run1").states.exists()


def test_wrong_settings_of_a_grid_are_refused(trained, capsys):
    assert "stps is not a setting. Did you mean steps?" in refused(capsys, "grid", trained, "--set", "stps=3")
    assert "steps is 0" in refused(capsys, "grid", trained, "--set", "steps=0")
    assert "write it as key=value" in refused(capsys, "grid", trained, "--set", "steps")


AXES = (
    ("size=1", "'size' cannot be an axis"),
    ("strength=high", "strength needs numbers"),
    ("strength=nan", "nan cannot be a value"),
    ("strength=", "has no values"),
    ("seed", "has no values"),
    ("seed=1.5", "seed needs numbers"),
    ("seed=-1", "whole numbers from 0"),
    ("checkpoint=newest", "checkpoint needs numbers"),
    ("checkpoint=off,77", "no LoRA file of step 77; it has 4"),
    ("prompt", "has no values"),
)


@pytest.mark.parametrize("axis, expected", AXES)
def test_wrong_axes_are_refused(trained, capsys, axis, expected):
    other = "seed=1" if not axis.startswith("seed") else "strength=1"
    assert expected in refused(capsys, "grid", trained, "--x", axis, "--y", other)
    assert "choose two of" in refused(capsys, "grid", trained, "--x", "seed=1", "--y", "seed=2")


def test_a_missing_step_is_refused(trained, project, settings, capsys):
    assert "no LoRA file of step 3; it has 4" in refused(capsys, "export", trained, "--step", "3")


def test_a_config_file_that_cannot_be_used_is_refused(project, tmp_path, capsys):
    assert "cannot be read" in refused(capsys, "train", project, "--config", tmp_path / "none.yaml")
    assert "cannot be read" in refused(capsys, "train", project, "--config", tmp_path)
    (tmp_path / "bad.yaml").write_text("loop: [1")
    assert "not YAML" in refused(capsys, "train", project, "--config", tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- loop")
    assert "not a table" in refused(capsys, "train", project, "--config", tmp_path / "list.yaml", "--set", "a=1")
    assert "model.source is missing" in refused(capsys, "train", project)


def test_a_project_without_images_is_refused(tmp_path, settings, capsys):
    shown = refused(capsys, "train", tmp_path, "--config", settings)
    assert str(tmp_path / "dataset") in shown and "put the images there" in shown
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "notes.txt").write_text("girl")
    assert "No usable image" in refused(capsys, "train", tmp_path, "--config", settings)


def foreign(name: str, folder: Path) -> Path:
    """A file that is no base model."""
    file = folder / "model.safetensors"
    if name == "lora":
        save_file({"lora_unet_x.lora_down.weight": torch.ones(1, 1)}, file)
    elif name == "page":
        file.write_text("<html>not found</html>")
    elif name == "empty":
        file.write_bytes(b"")
    elif name == "truncated":
        save_file({"x": torch.ones(1000)}, file)
        file.write_bytes(file.read_bytes()[:-100])
    return file


@pytest.mark.parametrize(
    "name, expected",
    (
        ("lora", "is a LoRA"),
        ("page", "web page"),
        ("empty", "is empty"),
        ("truncated", "is truncated"),
        ("missing", "No file or folder"),
    ),
)
def test_a_base_that_is_none_is_refused(project, settings, tmp_path, capsys, name, expected):
    file = foreign(name, tmp_path)
    assert expected in refused(capsys, "train", project, "--config", settings, "--set", f"model.source={file}")


def test_a_changed_config_data_set_or_base_is_refused_on_resume(project, settings, tmp_path, capsys):
    command = ["train", project, "--config", settings]
    assert main([str(part) for part in command]) == 0
    shown = refused(capsys, *command, "--set", "adapter.rank=8", "--set", "loop.seed=1")
    assert (
        "adapter.rank: 2 -> 8" in shown
        and "loop.seed: 42 -> 1" in shown
        and "settings changed since it was started" in shown
    )
    base = tiny.save_sd15(tmp_path / "base2", seed=5)
    assert "model.source" in refused(capsys, *command, "--set", f"model.source={base}")
    caption = project / "dataset" / "1_mofu" / "00.txt"
    caption.write_text("something else")
    shown = refused(capsys, *command)
    assert "1_mofu/00.png" in shown and "something else" in shown


def test_a_damaged_lora_file_is_refused(project, settings, capsys):
    assert main(["train", str(project), "--config", str(settings), "--set", "loop.steps=1"]) == 0
    file = Project(project).run("run1").lora_file(1)
    file.write_bytes(file.read_bytes()[:-50])
    assert "is truncated" in refused(capsys, "export", project, "--output", project)
    assert "is truncated" in refused(capsys, "grid", project, "--x", "checkpoint=1", "--y", "seed=1")


# ---- as a program ----------------------------------------------------------------------------------------------------


def program(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_bad_input_ends_a_program_with_status_2(tmp_path):
    for arguments, shown in (
        (("status", str(tmp_path / "nowhere")), "does not exist"),
        (("fly",), "invalid choice: 'fly'"),
        ((), "COMMAND"),
        (("export", str(tmp_path), "--step", "two"), "invalid int value"),
    ):
        ended = program("-m", "lorakit", *arguments)
        assert ended.returncode == 2 and shown in ended.stderr and "Traceback" not in ended.stderr


def test_a_run_in_a_program_of_its_own(project, settings):
    flags = ("--config", str(settings), "--set", "loop.steps=1", "--set", "sample.prompts=[]")
    ended = program("-m", "lorakit", "train", str(project), *flags)
    assert ended.returncode == 0, ended.stderr
    assert "finished after step 1" in ended.stdout and "\r" not in ended.stdout
    (saved,) = [event for _, event in read(Project(project).run("run1").log) if isinstance(event, Saved)]
    assert saved.matched == "48"


HEAVY = {"torch", "numpy", "diffusers", "transformers", "peft", "PIL", "safetensors", "huggingface_hub", "matplotlib"}


@pytest.mark.parametrize(
    "code",
    (
        "import lorakit",
        "import lorakit.cli",
        "from lorakit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from lorakit.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
        "from lorakit.cli import main\nmain(['status', '.'])",
    ),
)
def test_what_needs_no_torch_loads_none(code):
    ended = program("-c", f"{code}\nimport sys; print(); print(*(name for name in sys.modules if '.' not in name))")
    assert ended.returncode == 0, ended.stderr
    assert not HEAVY & set(ended.stdout.splitlines()[-1].split())


def test_an_interrupted_command_ends_with_one_line(monkeypatch, capsys, tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("lorakit.doctor.check_machine", interrupt)
    assert main(["doctor", str(tmp_path)]) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0


# ---- models ----------------------------------------------------------------------------------------------------------


def test_model_fetch_brings_a_base_checks_it_and_tells_what_it_is(base, capsys):
    assert main(["model", "fetch", "--set", f"model.source={base}"]) == 0
    shown = capsys.readouterr().out
    assert f"{base}: a diffusers folder with StableDiffusionPipeline (SD 1.5)" in shown
    assert "it can be trained as sd15" in shown


def test_model_fetch_refuses_a_base_of_another_family(base, capsys):
    assert main(["model", "fetch", "--set", "model.family=sdxl", "--set", f"model.source={base}"]) == 2
    assert "sd15" in capsys.readouterr().err
