"""The live view: all of a run from its folder alone, small, quick, and honest about what is safe."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import IPython
import pytest
from IPython import display as ipython_display
from logs import PROMPTS, Trainer, long_run, project, sampled, saved, started, stepped, write

from lorakit import events
from lorakit.errors import UserError
from lorakit.events import Failed, Finished, Progress, Stopped, Warned
from lorakit.files import write_json
from lorakit.project import Project
from lorakit.project.lock import lock_run
from lorakit.sync import service
from lorakit.training import jobs
from widgets.training import live
from widgets.training.history import History

IMAGE = re.compile(r"data:image/jpeg;base64,[^\"]+")


@pytest.fixture
def run(tmp_path):
    return project(tmp_path).run("r")


class Cell:
    """What a notebook's cell shows: its displays, and each update with its time."""

    def __init__(self):
        self.shown, self.updates, self.on_display = [], [], lambda: None

    def handle(self):
        place = len(self.shown)
        self.shown.append("")

        def display(html):
            self.shown[place] = html.data
            self.on_display()

        def update(html):
            self.shown[place] = html.data
            self.updates.append((time.monotonic(), html.data))

        return SimpleNamespace(display=display, update=update)

    @property
    def text(self):
        return "".join(self.shown)


@pytest.fixture
def cell(monkeypatch):
    fake = Cell()
    monkeypatch.setattr(ipython_display, "DisplayHandle", fake.handle)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=SimpleNamespace(_shutdown_message=None)))
    monkeypatch.setattr(live, "ENDING", 0.05)
    return fake


@pytest.fixture
def later():
    """later(seconds, act): have this process do something while the test waits in a view."""
    timers = []

    def start(seconds, act):
        timers.append(threading.Timer(seconds, act))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.cancel()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


# ---- small and quick -------------------------------------------------------------------------------------------------


def test_a_run_of_10000_steps_leaves_little_behind_and_is_drawn_quickly(run):
    html = live.render(long_run(run, 10_000))
    images = sum(map(len, IMAGE.findall(html)))
    assert len(html) - images < 40_000, "200 KB are allowed beside images"
    assert 0 < images < 400_000
    history, spent = History(run.log).read_on(), []
    with lock_run(run):  # as while it is trained
        for _ in range(3):
            begun = time.process_time()
            live.figures(run, history)
            live.samples(run, history)
            spent.append(time.process_time() - begun)
    assert min(spent) < 0.3, "it is drawn once a second, beside a trainer"


def test_a_fresh_process_shows_a_long_run_in_3_seconds_without_torch(run):
    long_run(run, 10_000)
    script = (
        "import sys, time; begun = time.process_time(); from widgets.training.live import render; "
        f"from lorakit.project import Project; render(Project({str(run.project.folder)!r}).run('r')); "
        "print(time.process_time() - begun); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3


def test_reading_in_pieces_and_at_once_is_the_same(run):
    write(run, started(0, 50), *(stepped(i) for i in range(1, 11)))
    history = History(run.log).read_on()
    for event in (saved(run, 10), *(stepped(i) for i in range(11, 21)), Stopped(step=20, reason="")):
        events.append(run.log, event, time=time.time())
        history.read_on()
    whole = History(run.log).read_on()
    assert (history.steps, history.saved, history.ended) == (whole.steps, whole.saved, whole.ended)
    assert history.losses() == whole.losses() and history.step == 20


# ---- what it shows --------------------------------------------------------------------------------------------------


def test_a_resume_leaves_no_mark_in_the_curves(tmp_path):
    losses = [1 / step for step in range(1, 61)]
    steps = [stepped(i, loss=loss) for i, loss in enumerate(losses, 1)]
    cut, uncut = (project(tmp_path).run(name) for name in ("cut", "uncut"))
    write(cut, started(0, 60), *steps[:40], started(30, 60), *steps[30:])
    write(uncut, started(0, 60), *steps)
    histories = [History(run.log).read_on() for run in (cut, uncut)]
    assert histories[0].losses() == histories[1].losses()
    assert histories[0].rates() == histories[1].rates()
    assert histories[0].resumes == [30] and histories[1].resumes == []


@pytest.mark.parametrize(
    "last, words",
    [
        (Finished(step=3, lora="lora/r-000003.safetensors"), ["finished", "r-000003.safetensors", "Next: compare"]),
        (Stopped(step=3, reason=""), ["stopped", "Everything up to step 3 is saved", "Run the cell again"]),
        (Failed(reason="the VAE is broken"), ["failed", "the VAE is broken"]),
        (None, ["interrupted", "session ended"]),
    ],
)
def test_the_end_is_shown_in_words_with_the_next_step(run, last, words):
    logged = [started(0, 9), *(stepped(i) for i in (1, 2, 3)), saved(run, 3), *([last] if last else [])]
    html = live.render(write(run, *logged))
    assert all(word in html for word in words), html
    assert "step 3 / 9" in html and "saved here: step 3 (" in html and "(interrupt)" not in html


def test_a_running_trainer_is_shown_from_its_first_second(run):
    write(run, started(0, 9), *(stepped(i) for i in range(1, 4)), Stopped(step=3, reason=""), ago=600)
    with lock_run(run):
        html = live.render(run)
        assert "loading the base model" in html and "left, finished at about" not in html
        events.append(run.log, Progress(what="images", done=3, total=12), time=time.time())
        html = live.render(run)
        assert "caching images: 3 / 12" in html and "width:25.0%" in html
        events.append(run.log, Progress(what="images", done=12, total=12), time=time.time())
        assert "loading the base model" in live.render(run)
        events.append(run.log, started(1, 9), time=time.time())
        for step in (2, 3):
            events.append(run.log, stepped(step), time=time.time())
        html = live.render(run)
    assert "training" in html and "step 3 / 9" in html and "images/s" in html and "left, finished at about" in html


def test_the_time_left_is_that_of_this_session(run):
    logged = [started(0, 300), *(stepped(i) for i in range(1, 141)), started(100, 300)]
    history = History(write(run, *logged, *(stepped(i) for i in range(101, 151)), pace=2.0).log).read_on()
    assert history.seconds_left() == pytest.approx(150 * 2.0, rel=0.01)


def test_samples_are_the_newest_of_each_prompt_and_bounded(run):
    logged = [event for step in range(10, 100, 10) for event in sampled(run, step, count=6)]
    (run.folder / logged[-6].image).unlink()  # an image that did not come along
    html = live.render(write(run, started(0, 100), stepped(1), *logged))
    assert len(IMAGE.findall(html)) == 4 * 6 - 1
    assert "step 90" in html and "step 40" in html and "step 30" not in html
    assert PROMPTS[3] in html and PROMPTS[4] not in html and "and 2 more prompts" in html


def test_warnings_are_counted_and_only_the_newest_are_shown(run):
    logged = [Warned(text=f"warning {i}") for i in range(8) for _ in range(1 + i % 2)]
    html = live.render(write(run, *logged))
    assert [i for i in range(8) if f"warning {i}" in html] == [3, 4, 5, 6, 7]
    assert "warning 7 (× 2)" in html and "warning 6 (×" not in html


def test_nothing_that_a_user_wrote_becomes_html(run):
    shown = sampled(run, 5)[0]
    evil = events.Sampled(step=5, prompt="<script>1</script>", image=shown.image)
    html = live.render(write(run, started(0, 9), Warned(text="<img src=x>"), evil, Failed(reason="<b>no")))
    assert "<script" not in html and "<img src=x>" not in html and "<b>no" not in html


# ---- what is safe ----------------------------------------------------------------------------------------------------


@pytest.fixture
def standing(tmp_path, run, monkeypatch):
    """standing(trouble, since=seconds ago): the state of the copying to the remote copy."""
    write(run, started(0, 9), stepped(1), saved(run, 1), Stopped(step=1, reason=""))
    remote = tmp_path / "MyDrive" / "mine"
    write_json(run.project.folder / "home.json", {"home": str(remote)})

    def shown(trouble="", *, since=0.0, confirmed=0, seen=0.0, is_running=True):
        now = time.time()
        state = service.Standing(
            confirmed={"r": confirmed},
            files_left=3,
            bytes_left=120_000_000,
            trouble=trouble,
            since=now - since,
            seen=now - seen,
            is_running=is_running,
        )
        monkeypatch.setattr(service, "standing", lambda _: state)
        return live.render(Project(run.project.folder).run("r"))

    return shown


def test_saved_here_and_safe_in_the_remote_copy_are_two_things(standing):
    assert "saved here: step 1 (" in standing() and "nothing safe on Drive yet" in standing()
    assert "safe on Drive: step 1" in standing(confirmed=1) and "3 files (120 MB) to copy" in standing(confirmed=1)


def test_failed_copies_are_a_banner_that_turns_red(standing):
    assert "Drive is full" not in standing("Drive is full.", since=1)
    assert "Drive is full" in standing("Drive is full.", since=20)
    assert live.AMBER in standing("Drive is full.", since=20) and live.RED not in standing("x", since=20)
    assert live.RED in standing("Drive is full.", since=61)
    assert "Training continues meanwhile" in standing("Drive is full.", since=61)


def test_copying_that_stalls_or_is_not_running_is_shown(standing):
    assert "Copying has stalled" not in standing(seen=10)
    assert "Copying has stalled" in standing(seen=100)
    assert "is not running" in standing(seen=100, is_running=False)


# ---- in a cell -------------------------------------------------------------------------------------------------------


def test_outside_of_a_notebook_it_says_what_to_do(run):
    with pytest.raises(UserError, match="lorakit watch .*--run r"):
        live.watch(write(run, started(0, 9)))


def test_a_run_that_is_not_trained_is_shown_and_left_at_once(run, cell):
    begun = time.monotonic()
    live.watch(write(run, started(0, 9), stepped(1), *sampled(run, 1), Stopped(step=1, reason="")))
    assert time.monotonic() - begun < 3 and "stopped" in cell.text and len(IMAGE.findall(cell.text)) == 1


def test_the_interrupt_button_stops_once_and_watches_until_all_is_saved(run, cell, later, monkeypatch):
    stopped, stop = [], jobs.stop
    monkeypatch.setattr(jobs, "stop", lambda run: stopped.append(run) or stop(run))
    run = write(run)
    with Trainer(run, saving=1.5) as trainer:
        later(2.5, interrupt)
        live.watch(run)
        assert trainer.process.wait(10) == 0
    assert any("Finishing this step and saving" in html for _, html in cell.updates)
    assert "stopped" in cell.text and "Finishing" not in cell.text
    assert stopped == [run]
    times = [at for at, html in cell.updates if "training" in html and "Finishing" not in html]
    assert times and all(b - a >= 0.9 for a, b in zip(times, times[1:], strict=False)), "one drawing a second"


def test_the_interrupt_button_stops_from_the_first_drawing_on(run, cell):
    run = write(run)
    with Trainer(run, saving=0) as trainer:
        cell.on_display = interrupt
        live.watch(run)
        assert trainer.process.wait(10) == 0
    assert "stopped" in cell.text


def test_a_second_interrupt_only_closes_the_view(run, cell, later):
    run = write(run)
    with Trainer(run, saving=30) as trainer:
        later(1.0, interrupt)
        later(2.5, interrupt)
        live.watch(run)
        assert trainer.process.poll() is None and "View closed" in cell.text


def test_a_kernel_that_is_shut_down_leaves_the_trainer_alone(run, cell, later, monkeypatch):
    ending = SimpleNamespace(kernel=SimpleNamespace(_shutdown_message={"status": "ok"}))
    monkeypatch.setattr(IPython, "get_ipython", lambda: ending)
    run = write(run)
    with Trainer(run, saving=0) as trainer:
        later(1.0, interrupt)
        live.watch(run)
        time.sleep(0.5)
        assert trainer.process.poll() is None and jobs.is_alive(run)
