"""What is uploaded and in which order, and the process that brings it there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from remotes import (
    ROOT,
    is_settled,
    opened,
    plain_remote,
    rotate,
    safetensors,
    save_data,
    send,
    served,
    serving,
    state,
    until,
    whole_states,
)

from lorakit.errors import UserError
from lorakit.files import write_json
from lorakit.project import Project
from lorakit.sync import pending, service
from lorakit.sync.pending import Due, Pass, Sent
from lorakit.sync.remote_lock import read_stamp
from lorakit.sync.service import Pace

plain, serve = pytest.fixture(plain_remote), pytest.fixture(served)


@contextmanager
def somebody_training(run) -> Iterator[None]:
    """A process that holds the run's lock."""
    with open(run.lock, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        trainer = subprocess.Popen(["sleep", "600"], stdin=lock)
    try:
        yield
    finally:
        trainer.kill()
        trainer.wait()


def test_everything_goes_home_but_what_is_of_this_machine_alone(plain, serve):
    run = plain.run("r")
    state(run, 10)
    save_data(plain.dataset)
    plain.cache.mkdir()
    (plain.cache / "x.safetensors").write_bytes(safetensors())
    for name in ("trainer.lock", "heartbeat.json", "x.part", ".hidden", "trainer.log"):
        (run.folder / name).write_text("x")
    (run.states / ".00000020.part").mkdir()
    (plain.folder / "settings.yaml").write_text("")
    serve(plain)
    standing = until(plain, is_settled)
    there = {str(path.relative_to(plain.remote)) for path in plain.remote.rglob("*") if path.is_file()}
    assert {name for name in there if not name.startswith("archives/")} == {
        "lorakit.json", "settings.yaml", "runs/r/config.yaml", "runs/r/fingerprint.json", "runs/r/events.jsonl",
        "runs/r/trainer.log", "runs/r/samples/step-000000-0.png", "runs/r/states/00000010/state.pt",
        "runs/r/states/00000010/COMPLETE.json",
    }  # fmt: skip
    assert len(there) == 9 + 3 + 2, "three archives and two lists of what they hold"
    assert standing.confirmed == {"r": 10} and standing.is_running and standing.since == 0.0


def test_a_name_that_is_no_utf_8_ends_no_mirror(plain, serve):
    name = os.fsdecode("小狐狸.txt".encode("gbk"))
    (plain.folder / name).write_text("x")
    mirrors = serve(plain)
    until(plain, is_settled)
    assert (plain.remote / name).exists() and mirrors.poll() is None
    assert name in Sent.of(plain).files


def test_a_clock_that_is_put_back_silences_no_trainer_to_other_machines(plain, tmp_path):
    code = (
        "import os, sys, time; clock = time.time\n"
        "time.time = lambda: clock() - 3600 * os.path.exists(sys.argv[2])\n"
        "from remotes import QUICK; from lorakit.sync.service import serve; from lorakit.project import Project\n"
        "serve(Project(sys.argv[1]), QUICK)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "builders")))}
    command, stamp = [sys.executable, "-c", code, str(plain.folder), str(tmp_path / "back")], plain.remote / "runs/r"
    with somebody_training(plain.run("r")):
        process = subprocess.Popen(command, env=environment)
        try:
            until(plain, lambda found: is_settled(found) and (stamp / "trainer.json").exists())
            (tmp_path / "back").touch()
            time.sleep(0.3)
            shown, end = (stamp / "trainer.json").read_bytes(), time.time() + 10
            while (stamp / "trainer.json").read_bytes() == shown:
                assert time.time() < end
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()


def test_what_is_no_file_is_passed_over_and_the_rest_goes_home(plain, serve):
    save_data(plain.dataset)
    for folder in (plain.folder, plain.run("r").folder, plain.dataset):
        os.symlink("loop", folder / "loop")
        os.mkfifo(folder / "pipe")
    state(plain.run("r"), 10)
    serve(plain)
    assert until(plain, lambda found: found.confirmed["r"] == 10 and is_settled(found)).notes == ()
    assert len(list((plain.remote / "archives").iterdir())) == 3


def test_files_that_home_cannot_have_keep_no_state_back(plain, serve):
    for name in "abcd":
        (plain.folder / name).write_text("x")
        (plain.remote / name / "in the way").mkdir(parents=True)
    state(plain.run("r"), 10)
    serve(plain)
    trouble = until(plain, lambda found: found.confirmed["r"] and found.trouble).trouble
    assert "it is a folder, not a file" in trouble
    assert whole_states(plain.remote) == [10] and (plain.remote / "runs/r/config.yaml").exists()


def test_a_run_deleted_at_home_goes_there_again_whole_while_it_goes_on(plain):
    run, sent = plain.run("r"), Sent.of(plain)
    for step in (1, 2):
        state(run, step)
    send(plain, sent)
    shutil.rmtree(plain.remote / "runs/r")
    send(plain, sent)
    assert not (plain.remote / "runs").exists() or not whole_states(plain.remote), "nobody trains it"
    state(run, 3)
    send(plain, sent)
    assert whole_states(plain.remote) == [2, 3]
    assert {path.name for path in (plain.remote / "runs/r").iterdir()} >= {"config.yaml", "fingerprint.json", "samples"}


def test_the_log_at_home_is_never_behind_its_newest_state_and_only_grows(plain, serve):
    run, seen = plain.run("r"), b""
    log = plain.remote / "runs/r/events.jsonl"
    with somebody_training(run):
        serve(plain, logs=600.0)
        for step in range(1, 6):
            state(run, step)
            until(plain, lambda found, step=step: found.confirmed["r"] == step)
            assert log.read_bytes().startswith(seen) and f'"step": {step}'.encode() in log.read_bytes()
            seen = log.read_bytes()


def test_lora_files_are_at_home_before_a_state_that_is_beyond_them(plain):
    run, sent = plain.run("r"), Sent.of(plain)
    run.loras.mkdir()
    for step in (1, 2, 3):
        run.lora_file(step).write_bytes(safetensors())
        state(run, step)
        rotate(run)
    for line in Pass(plain, sent, Due(logs=True, packs=(), training={}, announced=frozenset())).lines():
        if "states" in line:
            break  # the machine is lost with the first state on the remote
    assert whole_states(plain.remote) and sorted(os.listdir(plain.remote / "runs/r/lora")) == sorted(
        os.listdir(run.loras)
    )


def test_a_trainer_that_saves_while_lora_files_are_sent_keeps_no_state_back(plain):
    run, sent = plain.run("r"), Sent.of(plain)
    run.loras.mkdir()
    for step in (1, 2):
        run.lora_file(step).write_bytes(safetensors())
        state(run, step)
    steps = iter((3, 4))
    for line in Pass(plain, sent, Due(logs=True, packs=(), training={}, announced=frozenset())).lines():
        if "/lora/" in line.get("sent", "") and (step := next(steps, 0)):
            state(run, step)
            rotate(run)
    assert whole_states(plain.remote) == [3, 4]


def test_a_log_that_was_changed_at_home_is_written_anew(plain):
    sent = Sent.of(plain)
    send(plain, sent)
    (plain.remote / "runs/r/events.jsonl").write_text("{")
    with open(plain.run("r").log, "a") as log:
        log.write("more\n")
    send(plain, sent)
    assert (plain.remote / "runs/r/events.jsonl").read_bytes() == plain.run("r").log.read_bytes()


def test_a_state_that_was_rotated_away_here_is_left_out(plain, monkeypatch):
    run, sent = plain.run("r"), Sent.of(plain)
    for step in (1, 2):
        state(run, step)
    unsent_states = pending.unsent_states

    def then_rotated(run, sent):
        found = unsent_states(run, sent)
        rotate(run, keep=1)
        return found

    monkeypatch.setattr(pending, "unsent_states", then_rotated)
    send(plain, sent)
    assert whole_states(plain.remote) == [2]


def test_a_state_that_is_damaged_here_does_not_go_home(plain):
    run, sent = plain.run("r"), Sent.of(plain)
    state(run, 1)
    send(plain, sent)
    state(run, 2)
    (run.states / "00000002/state.pt").write_bytes(bytes(5000))
    with pytest.raises(OSError, match="the file to be copied is damaged"):
        send(plain, sent)
    assert whole_states(plain.remote) == [1]


def test_a_state_saved_again_replaces_the_one_of_its_step(plain):
    run, sent = plain.run("r"), Sent.of(plain)
    for seed in (0, 1):
        data = state(run, 1, seed=seed)
        send(plain, sent)
    assert whole_states(plain.remote) == [1] and (plain.remote / "runs/r/states/00000001/state.pt").read_bytes() == data


def test_a_project_without_a_remote_copy_has_no_service(tmp_path):
    project = Project(tmp_path)
    assert not service.start(project) and service.standing(project) is None and list(service.settle(project, 1)) == []
    with pytest.raises(UserError, match="has no remote copy"):
        service.serve(project)


def test_there_is_one_mirror_and_it_ends_by_itself(plain, serve):
    process = serve(plain, linger=1.0)
    until(plain, is_settled)
    assert not service.start(plain) and serving(plain).wait(20) == 0
    assert process.wait(20) == 0 and not service.standing(plain).is_running


def test_settling_starts_the_mirror_and_ends_when_all_is_safe(plain, monkeypatch):
    state(plain.run("r"), 1)
    save_data(plain.dataset)
    seen = list(service.settle(plain, timeout=30))
    assert seen[-1].files_left == 0 and seen[-1].confirmed == {"r": 1} and len(seen) < 40
    assert seen[0].files_left > 0 and whole_states(plain.remote) == [1]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        if str(plain.folder).encode() in process.read_bytes():
            os.kill(int(process.parent.name), 9)


def test_nothing_is_called_safe_that_was_written_after_the_last_look(plain, serve):
    serve(plain, look=0.3)
    for number in range(3):
        until(plain, is_settled)  # it has looked, and sleeps
        written, note = time.time(), str(number)
        (plain.folder / "note.txt").write_text(note)
        while (found := service.standing(plain)).seen <= written or not is_settled(found):
            time.sleep(0.002)
        assert (plain.remote / "note.txt").read_text() == note


def test_what_is_left_is_told_without_a_mirror(plain):
    state(plain.run("r"), 1)
    found = service.standing(plain)
    assert (found.confirmed, found.files_left, found.is_running) == ({"r": 0}, 5, False) and found.bytes_left > 5000


def test_what_other_machines_are_told_of_a_trainer(plain, serve, tmp_path):
    run, stamp = plain.run("r"), plain.remote / "runs/r/trainer.json"
    other = opened(plain.remote, tmp_path / "other").run("r")
    serve(plain)
    with somebody_training(run):
        state(run, 7)
        until(plain, lambda found: found.confirmed["r"] == 7 and stamp.exists())
        shown = service.elsewhere(other, old=10.0)
        assert "Run 'r' is being trained on another machine" in shown and "step 7" in shown
        assert service.elsewhere(run) == "", "here, but not elsewhere"
    end = time.time() + 10
    while read_stamp(stamp.read_bytes())["time"]:
        assert time.time() < end
        time.sleep(0.05)
    assert service.elsewhere(other) == "", "it was told that the trainer is gone"


def test_a_stamp_that_nobody_renews_is_dead(plain):
    stamp = plain.remote / "runs/r/trainer.json"
    stamp.parent.mkdir(parents=True)
    write_json(stamp, {"machine": "colab 1", "time": time.time(), "step": 3})
    begun = time.time()
    assert service.elsewhere(plain.run("r"), old=1.0) == "" and 0.5 < time.time() - begun < 3
    write_json(stamp, {"machine": "colab 1", "time": time.time() + 3600, "step": 3})  # by a clock that is ahead
    begun = time.time()
    assert service.elsewhere(plain.run("r"), old=1.0) == "" and 0.5 < time.time() - begun < 3
    stamp.write_text("{")
    assert service.elsewhere(plain.run("r")) == ""


def test_two_machines_that_train_one_run_are_told_and_nothing_is_overwritten(plain, serve):
    run, stamp = plain.run("r"), plain.remote / "runs/r/trainer.json"
    serve(plain, stamp=0.2)
    with somebody_training(run):
        until(plain, lambda found: stamp.exists() and is_settled(found))
        end, seen = time.time() + 10, ""
        while "is trained on another machine, too (colab)" not in seen:
            write_json(stamp, {"machine": "colab 1", "time": time.time(), "step": 3})
            assert time.time() < end, seen
            time.sleep(0.05)
            seen = service.standing(plain).trouble


def test_the_pace_of_a_real_mirror_tells_trouble_within_a_minute():
    pace = Pace()
    assert pace.silence + pace.look < 60 and pace.retry <= 30 and pace.logs <= 60
