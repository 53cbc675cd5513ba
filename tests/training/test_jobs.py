"""The trainer is a process of its own: it outlives who started it, one at a time, and its end is always explained."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from sessions import HARD, TEXT, assert_same_end, at, copy_of, merged, new_run, until
from tiny import save_sd15

from lorakit import events
from lorakit.events import Failed, Finished, Progress, Stepped, Stopped, Warned
from lorakit.machine import host
from lorakit.project import Project, ProjectError, Run, lock
from lorakit.run import checkpoint
from lorakit.training import jobs
from lorakit.training.loop import train
from lorakit.training.status import run_status

pytestmark = pytest.mark.usefixtures("forked")
ROOT = Path(__file__).parents[2]
LONG = merged(HARD, TEXT, {"loop": {"epochs": 10}, "save": {"every_steps": 3}})  # 20 steps


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here and in trainers: bit for bit holds for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, base):
    """The run, trained here in one piece."""
    run = new_run(tmp_path_factory.mktemp("uncut") / "p", base, LONG)
    list(train(run))
    return run


def elsewhere(code: str, run: Run) -> subprocess.Popen:
    """Python code about `run` in a process (group) of its own; it prints lines."""
    code = f"import sys, time\nfrom lorakit.training import jobs\nfrom lorakit.project import Project\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code.replace("RUN", f"Project({str(run.project.folder)!r}).run({run.name!r})")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def follow_to_the_end(run: Run) -> list[events.Event]:
    return [event for event in jobs.follow(run) if event is not None]


def last_event(run: Run) -> events.Event:
    return list(events.read(run.log))[-1][1]


def wait_for_its_end(run: Run) -> None:
    until = time.monotonic() + 60
    while jobs.is_alive(run):
        assert time.monotonic() < until
        time.sleep(0.02)


def kill(run: Run) -> None:
    os.kill(jobs.last_trainer(run).pid, signal.SIGKILL)
    wait_for_its_end(run)


# ---- a trainer outlives everybody ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orphan(tmp_path_factory, base, uncut):
    """A run whose trainer was started by a process that was interrupted and killed with its whole group, watched by one
    that was killed, started a second time; and what was seen of it."""
    run = new_run(tmp_path_factory.mktemp("orphan") / "p", base, LONG, name="帽子")
    starts = "import os; os.environ['PYTHONIOENCODING'] = 'ascii'; print(jobs.start(RUN), flush=True); time.sleep(60)"
    with elsewhere(starts, run) as starter:
        seen = {"first": starter.stdout.readline().strip()}
        os.killpg(starter.pid, signal.SIGINT)
        os.killpg(starter.pid, signal.SIGKILL)
    seen["again"] = jobs.start(run)
    seen["trainer"] = jobs.last_trainer(run)
    seen["state"] = run_status(run).state
    with elsewhere("[print(event, flush=True) for event in jobs.follow(RUN) if event]", run) as watcher:
        watcher.stdout.readline()
        watcher.kill()
    seen["followed"] = list(jobs.follow(run))
    pages = Path(f"/proc/{seen['trainer'].pid}/statm")  # zeros while a process is taken down, then nothing
    seen["pages"] = pages.read_text().split() if pages.exists() else []
    return run, seen


def test_a_trainer_goes_on_when_the_process_that_started_it_is_interrupted_and_killed_with_its_group(orphan, uncut):
    run, seen = orphan
    assert seen["first"] == "True" and seen["state"] == "running"
    assert isinstance(last_event(run), Finished)
    assert_same_end(run, uncut)


def test_a_second_start_attaches_to_the_trainer_that_there_is(orphan):
    run, seen = orphan
    assert seen["again"] is False
    assert jobs.last_trainer(run) == seen["trainer"]
    assert [type(event) for _, event in events.read(run.log)].count(events.Started) == 1


def test_who_follows_gets_the_history_then_what_happens_and_ticks_between(orphan):
    run, seen = orphan
    assert [event for event in seen["followed"] if event is not None] == [event for _, event in events.read(run.log)]
    assert seen["followed"].count(None) > 1
    assert follow_to_the_end(run) == [event for _, event in events.read(run.log)]


def test_a_run_that_is_complete_has_no_fate(orphan):
    run, _ = orphan
    assert not jobs.is_alive(run) and not jobs.stop(run)
    assert run_status(run).state == "finished" and jobs.fate(run) == ""


def test_names_in_any_script_get_into_the_trainers_log_whatever_the_terminals_encoding(orphan):
    run, _ = orphan
    assert f"finished after step 20: lora/{run.lora_file(20).name}" in (run.folder / "trainer.log").read_text("utf-8")


def test_a_trainer_lets_go_of_its_run_when_its_process_is_gone(orphan):
    assert set(orphan[1]["pages"]) <= {"0"}


def test_a_project_with_a_home_is_copied_there_whether_or_not_a_trainer_is_started(tmp_path, base, monkeypatch):
    run, mirrored = new_run(tmp_path, base, LONG), []
    monkeypatch.setattr("lorakit.sync.service.start", mirrored.append)
    with jobs.lock_run(run):
        assert jobs.start(run) is False and mirrored == []
        run.project.remote_file.write_text(json.dumps({"home": str(tmp_path / "drive")}))
        assert jobs.start(run) is False and mirrored == [run.project]


# ---- one at a time, stopped, killed, gone on with --------------------------------------------------------------------


@pytest.fixture(scope="module")
def journey(tmp_path_factory, base):
    """A run that two start at once, that is stopped before its trainer can listen, killed in its second session, and
    brought to its end by a third; with a copy of it after each session."""
    folder = tmp_path_factory.mktemp("journey")
    run, seen = new_run(folder / "p", base, LONG), {}
    (run.folder / "trainer.log").write_text("what was said long ago\n" * 60_000)
    code = f"run = RUN; time.sleep(max(0, {time.time() + 1} - time.time())); print(jobs.start(run))"
    seen["starts"] = [starter.communicate()[0].strip() for starter in [elsewhere(code, run) for _ in range(2)]]
    seen["shown"] = jobs.stop(run)
    seen["first"] = follow_to_the_end(run)
    stopped = copy_of(run, folder / "stopped")
    jobs.start(run)
    for event in jobs.follow(run):
        if isinstance(event, Stepped) and event.step > 4:
            break
    kill(run)
    cut = copy_of(run, folder / "cut")
    jobs.start(run)
    seen["rest"] = follow_to_the_end(run)
    return run, stopped, cut, seen


def test_of_two_starts_at_the_same_moment_one_becomes_the_trainer(journey):
    _, stopped, _, seen = journey
    assert sorted(seen["starts"]) == ["False", "True"]
    assert (stopped.folder / "trainer.log").read_text().count("lorakit train") == 1


def test_a_trainer_that_is_told_to_stop_before_it_can_listen_stops_as_soon_as_it_can(journey):
    _, stopped, _, seen = journey
    assert seen["shown"] is True
    assert [type(event) for event in seen["first"] if not isinstance(event, Warned)] == [Progress, Stopped]
    assert run_status(stopped).state == "stopped" and jobs.fate(stopped) == ""
    assert "Traceback" not in (stopped.folder / "trainer.log").read_text()


def test_a_run_that_was_stopped_and_killed_ends_bitwise_where_an_uncut_one_does(journey, uncut):
    assert_same_end(journey[0], uncut)


def test_a_large_log_of_the_trainer_is_cut_at_a_start_and_each_session_begins_with_its_command(journey):
    run, _, _, _ = journey
    said = (run.folder / "trainer.log").read_text()
    assert len(said) < jobs.LOG_LIMIT / 2 and said.startswith("what was said long ago\n")
    heads = [line for line in said.splitlines() if line.startswith("--- ")]
    assert len(heads) == 3 and all(f"lorakit train {run.project.folder} --run r" in line for line in heads)


def test_a_killed_trainer_is_told_of_with_the_last_saved_step_and_what_is_lost(journey):
    _, _, cut, _ = journey
    saved, reached = checkpoint.newest(cut.states).state["step"], max(events.steps(cut.log))
    assert run_status(cut).state == "cut"
    fate = jobs.fate(cut)
    assert "was killed by another program" in fate.splitlines()[0] and "last seen alive" in fate
    assert f"Saved up to step {saved}" in fate and f"it resumes after step {saved}" in fate
    assert (f"the {reached - saved} steps after it" in fate) == (reached > saved)
    assert (cut.folder / "trainer.log").read_text().splitlines()[-1].strip() in fate  # the end of its log


def test_a_trainer_that_is_killed_at_once_is_told_of_too(tmp_path, base):
    run = new_run(tmp_path, base, LONG)
    assert jobs.start(run)
    kill(run)
    assert run_status(run).state == "cut"
    fate = jobs.fate(run)
    assert "was killed by another program" in fate and "No step was saved yet" in fate and "begins at step 1" in fate


# ---- what became of it, from what lies about -------------------------------------------------------------------------


@pytest.fixture
def gone(journey, tmp_path):
    """The killed run; with changes to the file that its trainer signed and to its last heartbeat."""
    run = copy_of(journey[2], tmp_path / "p")

    def change(name: str, **values: object) -> Run:
        shown = json.loads((run.folder / name).read_text())
        (run.folder / name).write_text(json.dumps({**shown, **values}))
        return run

    return change


def test_a_kill_for_memory_is_known_by_the_last_heartbeat(gone):
    fate = jobs.fate(gone("heartbeat.json", memory={"available": 90_000_000, "total": 12_700_000_000}))
    assert "memory ran out (0.1 of 12.7 GB were left at its last sign of life)" in fate.splitlines()[0]
    assert "Close other programs" in fate and "Saved up to step" in fate


def test_a_kill_for_memory_is_known_by_the_kernels_count(gone, monkeypatch):
    run = gone("heartbeat.json", memory=None)
    before = host.memory_kills()
    assert "memory" not in jobs.fate(run).splitlines()[0]
    monkeypatch.setattr(host, "memory_kills", lambda: before + 1)
    assert "memory ran out (the kernel has killed a process for it since)" in jobs.fate(run).splitlines()[0]


def test_the_heartbeat_of_another_trainer_is_not_believed(gone):
    gone("heartbeat.json", memory={"available": 0, "total": 12_700_000_000})
    assert "was killed by another program" in jobs.fate(gone("heartbeat.json", process="another"))


@pytest.mark.parametrize("change", [{"boot": "another"}, {"host": "another"}])
def test_a_machine_that_is_gone_is_known_by_its_name_and_its_start(gone, change):
    fate = jobs.fate(gone("trainer.lock", **change))
    assert "The machine on which it was trained" in fate and "is gone or was started again" in fate
    assert "Saved up to step" in fate


def test_a_run_that_came_from_another_machine_without_its_lock_is_told_of(gone):
    run = gone("heartbeat.json")
    run.lock.unlink()
    assert run_status(run).state == "cut"
    assert "its session ended" in jobs.fate(run)


@pytest.mark.parametrize(
    "said, shown",
    [
        ("Traceback (most recent call last):\n  File x\n    y()\nKeyError: 'mofu'\n", "error: KeyError: 'mofu'"),
        ("Fatal Python error: Segmentation fault\n\nThread 1:\n  File x\n", "error: Fatal Python error: Segmentation"),
        ("lorakit: /p does not exist; name a project.\n", "error: lorakit: /p does not exist"),
        (
            "Traceback (most recent call last):\n  File x\nOSError: shrugged off\nstep 10  epoch 1\n",
            "by another program",
        ),
    ],
)
def test_the_end_of_the_trainers_log_explains_what_the_run_cannot(gone, said, shown):
    run = gone("heartbeat.json")
    with open(run.folder / "trainer.log", "a") as log:
        log.write(said)
    fate = jobs.fate(run)
    assert shown in fate.splitlines()[0]
    assert said.splitlines()[-1] in fate and "what was said long ago" not in fate


def test_a_session_in_a_terminal_or_notebook_that_was_cut_is_told_of(tmp_path, base):
    run = new_run(tmp_path, base, LONG)
    until(run, at(Stepped, 4))
    fate = jobs.fate(run)
    assert run_status(run).state == "cut" and "The terminal or the notebook's kernel" in fate
    assert "Saved up to step 3; the 1 steps after it" in fate


def test_an_error_that_can_be_explained_ends_the_log_and_is_told(tmp_path, base):
    shutil.copytree(base, tmp_path / "base")
    run = new_run(tmp_path / "p", tmp_path / "base", LONG)
    shutil.rmtree(tmp_path / "base")
    jobs.start(run)
    (failed,) = follow_to_the_end(run)
    assert isinstance(failed, Failed) and str(tmp_path / "base") in failed.reason
    assert run_status(run).state == "failed"
    assert jobs.fate(run).startswith(failed.reason) and "Once that is fixed" in jobs.fate(run)


# ---- the lock --------------------------------------------------------------------------------------------------------


def test_a_trainer_in_this_process_excludes_all_others_and_says_who_it_is(tmp_path, base):
    run = new_run(tmp_path, base, LONG)
    stream = train(run)
    next(stream)
    log = run.log.read_bytes()
    assert jobs.is_alive(run) and run_status(run).state == "running" and jobs.fate(run) == ""
    assert jobs.start(run) is False
    with pytest.raises(jobs.RunBusy, match="this same process .* since 20.*lorakit stop"):
        next(train(run))
    assert run.log.read_bytes() == log  # the other's log tells nothing of it
    code = (
        "from lorakit.project import lock\ntry:\n    lock.locked(RUN)\nexcept jobs.RunBusy as error:\n    print(error)"
    )
    with elsewhere(code, run) as other:
        assert f"in process {os.getpid()} on" in other.stdout.read()
    stream.close()
    assert not jobs.is_alive(run)
    with jobs.lock_run(run):
        assert jobs.is_alive(run)


def test_looking_whether_a_run_is_trained_never_keeps_a_trainer_from_it(tmp_path, base):
    run = new_run(tmp_path, base, LONG)
    run.lock.touch()
    with open(run.lock, "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # as `is_alive` does, but for longer
        threading.Timer(0.2, fcntl.flock, (looking.fileno(), fcntl.LOCK_UN)).start()
        with jobs.lock_run(run):
            assert jobs.is_alive(run)


def test_a_file_system_without_locks_is_refused_and_not_silently_taken(tmp_path, base, monkeypatch):
    run = new_run(tmp_path, base, LONG)

    def flock(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    for begin in (lambda: next(train(run)), lambda: jobs.start(run)):
        with pytest.raises(lock.NoLocks, match="cannot lock files .* machine's own disk"):
            begin()
    assert not jobs.is_alive(run) and run_status(run).state == "new"


def test_a_run_without_a_config_is_refused_and_not_made(tmp_path):
    run = Project(tmp_path).run("r")
    for verb in (jobs.start, lambda run: next(train(run))):
        with pytest.raises(ProjectError, match="no run 'r'"):
            verb(run)
    assert not run.folder.exists() and not jobs.stop(run) and run_status(run).state == "new"
    assert list(jobs.follow(run)) == [] and jobs.fate(run) == ""


def test_a_trainer_of_another_machine_is_not_told_to_stop_by_a_signal_to_a_stranger(tmp_path, base, monkeypatch):
    run = new_run(tmp_path, base, LONG)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a stranger was hit"))
    with lock.locked(run) as held:
        for change in ({"host": "another"}, {"boot": "another"}, {"process": "1"}):
            trainer = {**vars(lock.Trainer.of(os.getpid(), run)), **change}
            lock.sign(held, lock.Trainer(**trainer))
            with pytest.raises(jobs.Elsewhere, match="stop it there"):
                jobs.stop(run)


def test_a_new_start_forgets_how_the_last_one_ended(tmp_path, base):
    run = new_run(tmp_path, base, LONG)
    events.append(run.log, Warned(text="x"), time=time.time())
    events.append(run.log, Stopped(step=0, reason="asked"), time=time.time())
    assert run_status(run).state == "stopped"
    time.sleep(0.002)
    with jobs.lock_run(run):
        assert run_status(run).state == "running"
    assert run_status(run).state == "cut"  # it died before its first word


def test_nothing_heavy_is_loaded_to_start_watch_and_stop(orphan):
    code = "from lorakit.training import status\nrun = RUN\n"
    code += "list(jobs.follow(run)), jobs.fate(run), status.run_status(run)\n"
    heavy = ("torch", "numpy", "PIL", "diffusers", "transformers", "yaml")
    with elsewhere(code + f"print([name for name in {heavy} if name in sys.modules])", orphan[0]) as process:
        assert process.stdout.read().strip() == "[]"
