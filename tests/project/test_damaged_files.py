"""A damaged file of a project, whatever it holds: commands that read go on, or name it; none ends in a traceback."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
from pathlib import Path

import pytest
import tiny
import yaml

from lorakit.cli import main
from lorakit.config import to_yaml
from lorakit.files.disk import DamagedFile
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.resume import load_record
from lorakit.sync.service import standing
from lorakit.training.loop import train
from widgets.project import preferences
from widgets.project.draft import Draft

DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "a list": lambda file: file.write_text("[1, 2]"),
    "a number": lambda file: file.write_text("1e999"),
    "other keys": lambda file: file.write_text('{"a": [1]}'),
    "brackets": lambda file: file.write_text("[" * 100_000),
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "huge": lambda file: (file.write_bytes(b""), os.truncate(file, 1 << 36)),
}
FILES = (
    *(f"runs/run1/{name}" for name in ("config.yaml", "fingerprint.json", "events.jsonl", "heartbeat.json")),
    *("runs/run1/trainer.lock", "runs/run1/states/00000002/COMPLETE.json", "tags/history.jsonl"),
    *("tags/captions.v1.json", "tags/book.lock", "cache/.looks.json", "boxes.yaml", "prepare.yaml", "tagging.yaml"),
    *("settings.yaml", "preferences.json", "home.json", ".sync/sent.json", ".sync/standing.json"),
    *(".sync/wanted.json", ".sync/brought.jsonl", ".sync/notes.json", "dataset/1_mofu/00.txt"),
)
VERBS = ("status", "watch", "tag history")
RUN = "runs/run1"
# A verb that works on project {p} -> files that it cannot do without, and the damage that is the cheapest to notice.
NEEDED = {
    "train {p}": {
        f"{RUN}/config.yaml": "a list",
        f"{RUN}/fingerprint.json": "empty",
        f"{RUN}/events.jsonl": "a pipe",
        f"{RUN}/trainer.lock": "a pipe",
        f"{RUN}/states/00000002/state.pt": "binary",
    },
    "export {p} --output out": {f"{RUN}/config.yaml": "a list", f"{RUN}/lora/run1-000002.safetensors": "binary"},
    "extend {p} --epochs 2 --way hold": {f"{RUN}/fingerprint.json": "a folder", f"{RUN}/events.jsonl": "huge"},
    "grid {p} --y strength=1": {f"{RUN}/config.yaml": "a list", f"{RUN}/lora/run1-000002.safetensors": "huge"},
    "data check {p}": {"boxes.yaml": "a folder", "dataset/1_mofu/00.png": "binary"},
    "data prepare {p}": {"prepare.yaml": "other keys", "cache/.prepare.lock": "a pipe"},
    "tag edit {p} --add hat": {"tags/captions.v1.json": "other keys", "tags/history.jsonl": "a folder"},
}
# What every one of them can do without, beside the encoded images and captions.
SPARED = (
    *(f"{RUN}/heartbeat.json", f"{RUN}/trainer.log", f"{RUN}/samples/000002-00.png"),
    *("cache/.looks.json", "settings.yaml", "preferences.json", ".sync/notes.json"),
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A project with a trained run, a caption history and settings; cases damage a copy."""
    root = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        folder = root / "project"
        tiny.save_images(folder / "dataset", sizes=((64, 64),) * 2)
        settings = tiny.settings(
            tiny.save_sd15(root / "base"), loop={"epochs": 1, "batch_size": 1}, sample={"prompts": ["mofu"], "steps": 1}
        )
        (root / "settings.yaml").write_text(yaml.safe_dump(settings))
        assert main(["tag", "edit", str(folder), "--add", "smile"]) == 0
        assert main(["train", str(folder), "--config", str(root / "settings.yaml")]) == 0
        Draft(Project(folder)).save()
        yield folder


@pytest.fixture
def copy(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "project"))


@contextlib.contextmanager
def soon(seconds: int = 20):
    """Fails what hangs."""

    def hangs(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def damaged(project: Path, name: str, damage: str) -> Path:
    file = project / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    DAMAGES[damage](file)
    return file


@pytest.mark.parametrize("verb", NEEDED)
def test_a_verb_does_without_what_can_be_made_again_and_names_what_cannot(kept, tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    encoded = [
        str(file.relative_to(kept)) for folder in ("latents", "text") for file in kept.glob(f"cache/{folder}/*/*")
    ]
    # a pipe is what whoever opens it waits for
    spared = dict(zip((*SPARED, *encoded), itertools.cycle(("a pipe", "binary", "a list"))))
    for case, damages in enumerate((spared, *({name: damage} for name, damage in NEEDED[verb].items()))):
        project = Path(shutil.copytree(kept, tmp_path / f"{case}"))
        files = [damaged(project, name, damage) for name, damage in damages.items()]
        with soon():
            status = main(verb.format(p=project).split())
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err and status in (0, *((1, 2) if case else ())), (damages, out, err)
        assert status == 0 or files[0].name in out + err, (damages, out, err)


@pytest.mark.parametrize("name", FILES)
def test_reading_commands_go_on_or_name_the_damaged_file(kept, tmp_path, capsys, name):
    for damage in DAMAGES:
        project = Path(shutil.copytree(kept, tmp_path / damage))
        file = damaged(project, name, damage)
        for verb in VERBS:
            with soon():
                status = main([*verb.split(), str(project)])
            _, err = capsys.readouterr()
            assert status in (0, 1, 2) and "Traceback" not in err, (damage, verb, err)
            # a config that is no file is as good as no run
            assert status != 2 or file.name in err or "no run" in err, (damage, verb, err)
        with soon(), contextlib.suppress(ValueError, OSError):  # as a notebook does
            Draft(Project(project))
            preferences.read(Project(project), preferences.platforms.find({}))
            standing(Project(project))


def test_status_says_once_that_log_lines_were_skipped(copy, capsys):
    shutil.copytree(copy / "runs" / "run1", copy / "runs" / "run2")
    assert main(["status", str(copy)]) == 0 and "skipped" not in capsys.readouterr().out
    for log in copy.glob("runs/*/events.jsonl"):
        log.write_text(log.read_text() + '{"kind": "dreamt", "time": 1}\n' * 2)
    assert main(["status", str(copy)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "skipped" in line)
    assert "run1, run2" in line and len(line) < 120


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_repaired_from_the_newest_state(copy, damage):
    run = Project(copy).run("run1")
    record = load_record(run)
    file = damaged(copy, "runs/run1/fingerprint.json", damage)
    if damage in ("a folder", "a link to itself"):
        with pytest.raises(ValueError, match=r"fingerprint.json"):
            load_record(run)
        return
    assert load_record(run) == record != {}
    assert file.is_file() and load_record(run) == record


def test_a_damaged_record_without_a_copy_is_named_with_what_to_do(copy):
    run = Project(copy).run("run1")
    for mark in run.states.glob("*/COMPLETE.json"):  # as earlier versions wrote it
        content = yaml.safe_load(mark.read_text())
        mark.write_text(str({key: content[key] for key in ("step", "sha256", "bytes")}).replace("'", '"'))
    damaged(copy, "runs/run1/fingerprint.json", "empty")
    with pytest.raises(DamagedFile, match=r"(?s)fingerprint.json.*--from-weights .*run1-000002.safetensors"):
        load_record(run)


def test_samples_that_a_kill_prevented_are_made_on_resume_and_leftovers_go(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept.parent / "cache"))
    settings = yaml.safe_load((kept.parent / "settings.yaml").read_text())
    settings |= {"sample": {**settings["sample"], "prompts": ["mofu", "hat"], "every_steps": 1}}
    folder = tmp_path / "project"
    shutil.copytree(kept / "dataset", folder / "dataset")
    run = Project(folder).run("run1")
    run.folder.mkdir(parents=True)
    settings["save"] = {"every_steps": 1}
    run.config_file.write_text(to_yaml(configure(settings)))
    list(train(run))
    whole = {file.name: file.read_bytes() for file in run.samples.iterdir()}
    assert len(whole) == 4
    # killed after the state of step 1, in the middle of its second sample
    shutil.rmtree(run.states / "00000002")
    for name in ("000001-01.png", "000002-00.png", "000002-01.png"):
        (run.samples / name).unlink()
    (run.samples / "000001-01.part").write_bytes(b"half")
    (folder / "settings.yaml.99999999.part").write_bytes(b"half")
    living = folder / f"settings.yaml.{os.getpid()}.part"
    living.write_bytes(b"of a process that lives")
    list(train(run))
    assert {file.name: file.read_bytes() for file in run.samples.iterdir()} == whole
    assert [*folder.rglob("*.part")] == [living]


def test_several_processes_are_refused_in_one_sentence(copy, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(copy)]) == 2
    assert "without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("now, state", [(1.0, "finished"), (4e9, "finished")], ids=["back", "forth"])
def test_a_clock_that_jumps_changes_no_state(copy, monkeypatch, now, state):
    from lorakit.project import lock
    from lorakit.training import jobs

    run = Project(copy).run("run1")
    monkeypatch.setattr("time.time", lambda: now)
    assert jobs.history(run)[0] == "finished"
    # a trainer that ended before its first event, at any time of any clock
    with lock.lock_run(run):
        pass
    assert jobs.history(run)[0] == "cut"
