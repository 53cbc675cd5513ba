"""The live view of a run, made from its folder alone, so that any cell of any kernel can show it at any time."""

from __future__ import annotations

import html
import time
from pathlib import Path

from lorakit.errors import UserError
from lorakit.events import Finished
from lorakit.project import Project, Run
from lorakit.training import jobs
from widgets.choices import choice_label
from widgets.i18n import message, say
from widgets.images import thumbnail
from widgets.page import AMBER, BLUE, GREY, RED, WIDTH, aside, bar, box, clock, facts, size, span
from widgets.plot import Curve, lines, number
from widgets.project.labels import labelled
from widgets.training.history import History
from widgets.waiting import Queue

REDRAW = 1.0  # s between two updates at least
# Shown at most; each column is a step with samples.
PROMPTS, COLUMNS, WARNINGS = 4, 6, 5
STATES = {
    "new": "not started",
    "running": "training",
    "stopped": "stopped",
    "finished": "finished",
    "failed": "failed",
    "cut": "interrupted",
}
# what is cached, as logged (version 0.1 wrote "pictures") -> its name on the screen
KINDS = {"images": "images", "pictures": "images", "captions": "captions"}
# Seconds within which a kernel that is interrupted for a shutdown receives the request.
ENDING = 0.5
# Seconds that copying may fail before that is shown, and before it is shown in red.
HICCUP, LONG = 5, 60


def train(run: Run) -> None:
    """Start or resume training in a process of its own, and show it; for the interrupt button see `watch`."""
    _watch(run, starts=True)


def watch(run: Run) -> None:
    """Show a run in this cell and follow it until its trainer has ended, or until another cell is to be run.

    The interrupt button makes the trainer finish its step, save and stop, which the view still shows; a second one
    closes the view only. Raises UserError outside of a notebook.
    """
    _watch(run, starts=False)


def render(run: Run) -> str:
    """The whole view as HTML. Needs nothing but the run's folder."""
    history = History(run.log).read_on()
    return figures(run, history) + samples(run, history)


# ---- in a cell -------------------------------------------------------------------------------------------------------


def _watch(run: Run, starts: bool) -> None:
    from IPython import get_ipython

    if (kernel := getattr(get_ipython(), "kernel", None)) is None:
        command = f"lorakit {'start' if starts else 'watch'} {run.project.folder} --run {run.name}"
        raise UserError(say("This view needs a notebook. In a terminal: {command}", command=command))
    # Two nested `try`: the first interrupt stops the trainer, which is still shown, the second one only closes the
    # view.
    screen, queue = _Screen(run), Queue(kernel)
    try:
        try:
            screen.open()
            if starts:
                screen.note_remote_check()
                jobs.start(run)
            # A request that waits is answered only after this cell has ended.
            if not screen.follow(queue):
                screen.note = say(
                    "Training continues. This view closed because another cell was run: run this cell again to "
                    "reopen it."
                )
                return
        except KeyboardInterrupt:
            if _is_ending(kernel):
                return
            screen.note = say("Finishing this step and saving…")
            jobs.stop(run)
            screen.draw()
            screen.follow()
        screen.note = ""
    except KeyboardInterrupt:
        screen.note = say("View closed. The trainer still saves and stops; run this cell again to see it.")
    finally:
        screen.finish()
        queue.close()


def _is_ending(kernel: object) -> bool:
    """Whether a kernel was interrupted because it is shut down or restarted: training then continues without it.

    Jupyter interrupts a kernel first and requests its end a moment later. The request is kept in this attribute
    alone, which is None before it.
    """
    until = time.monotonic() + ENDING
    try:
        while time.monotonic() < until and (request := getattr(kernel, "_shutdown_message", None)) is None:
            time.sleep(0.02)
    except KeyboardInterrupt:  # pressed by a person
        return False
    return request is not None


class _Screen:
    """The two displays of a cell: figures, updated once a second, and samples, updated when there are new ones."""

    def __init__(self, run: Run):
        from IPython.display import HTML, DisplayHandle

        self.run, self.note, self.html = run, "", HTML
        self.history, self.samples, self.drawn = History(run.log), "", 0.0
        self.top, self.below = DisplayHandle(), DisplayHandle()

    def open(self) -> None:
        """Show all of it for the first time."""
        self.samples = samples(self.run, self.history.read_on())
        self.top.display(self.html(figures(self.run, self.history)))
        self.below.display(self.html(self.samples))
        self.drawn = time.monotonic()

    def note_remote_check(self) -> None:
        """Show why starting a run of a project with a remote copy takes minutes."""
        if self.run.project.remote is not None and not jobs.is_alive(self.run):
            self.note = say("Checking that no other machine trains this run (up to 3 minutes)…")
            self.draw()
            self.note = ""

    def follow(self, queue: Queue | None = None) -> bool:
        """Update at most once in REDRAW s until the trainer has ended; False when the queue has grown before that."""
        # Polled in the foreground: Colab does not draw updates that a background thread makes.
        for _ in jobs.follow(self.run):
            if queue is not None and queue.has_grown():
                return False
            if time.monotonic() - self.drawn >= REDRAW:
                self.draw()
        return True

    def draw(self) -> None:
        """One update: the samples if there are new ones, else the figures."""
        # Only one of the two displays, so that there is one update a second at most.
        newest, self.drawn = samples(self.run, self.history.read_on()), time.monotonic()
        if newest != self.samples:
            self.samples = newest
            self.below.update(self.html(newest))
        else:
            self.top.update(self.html(figures(self.run, self.history, self.note)))

    def finish(self) -> None:
        """The last update, which stays in the notebook."""
        self.below.update(self.html(samples(self.run, self.history.read_on())))
        self.top.update(self.html(figures(self.run, self.history, self.note)))


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(run: Run, history: History, note: str = "") -> str:
    """Everything but the samples, as HTML; `note` is a plain text about the view itself."""
    alive, now = jobs.is_alive(run), time.time()
    # Asked once, so that all pieces show the same moment.
    state = "running" if alive else jobs.history(run)[0]
    pieces = [_headline(run, history, state, now)]
    pieces += [box(note, AMBER)] if note else []
    pieces += [facts(saved_lines(run, history, now))] if history.saved or alive else []
    pieces += [copy_problem(run.project, now), _ending(run, history, state), _loss(history), _rates(history)]
    pieces += [_warning(text, count) for text, count in list(history.warnings.items())[-WARNINGS:]]
    if alive and not note:
        pieces.append(
            aside(
                say(
                    "■ (interrupt) finishes this step, saves and stops. Closing the tab does not stop training; run "
                    "this cell again to see it."
                )
            )
        )
    return f'<div style="max-width:{WIDTH}px;line-height:1.5">{"".join(pieces)}</div>'


def _headline(run: Run, history: History, state: str, now: float) -> str:
    """Name and state, progress, and the current figures."""
    doing = _doing(run, history, now) if state == "running" else None
    text, share = doing or (say(STATES[state]), history.step / max(1, history.total))
    parts = []
    if history.total:
        parts.append(say("step {step} / {steps}", step=history.step, steps=history.total))
    if (epoch := history.epoch_of(history.step)) is not None:
        parts.append(say("epoch {n}", n=epoch))
    if state == "running" and not doing and (left := history.seconds_left()) is not None:
        parts.append(say("{span} left, finished at about {clock}", span=span(left), clock=clock(now + left)))
    if speed := history.images_per_second():
        parts.append(say("{n} images/s", n=number(speed, 2)))
        # A trainer on a CPU logs the peak of its RAM, one on a GPU that of its VRAM.
        on_cpu = history.started is None or history.started.device == "cpu"
        memory = f"{history.steps[history.step].memory_gb:.1f}"
        parts.append(say("{n} GB RAM", n=memory) if on_cpu else say("{n} GB VRAM", n=memory))
    if history.started:
        started = history.started
        parts.append(f"{started.precision} · {started.device}")
        # earlier versions did not record it
        if started.prediction:
            parts.append(choice_label(started.prediction))
    head = f"<b>{html.escape(run.name)}</b> · {html.escape(text)}"
    return f'<div style="line-height:1.6">{head}</div><div style="margin:6px 0">{bar(share)}</div>{facts(parts)}'


def _doing(run: Run, history: History, now: float) -> tuple[str, float] | None:
    """What a running trainer does before its first step, and the share that is done; None from that step on."""
    trainer = jobs.last_trainer(run)
    # Events older than the trainer are of an earlier session.
    begun = trainer.begun if trainer else now
    if history.started_at >= begun:
        return None
    prepared = history.prepared
    if prepared and history.prepared_at >= begun and prepared.done < prepared.total:
        what = say(KINDS[prepared.what])
        text = say("caching {what}: {done} / {total}", what=what, done=prepared.done, total=prepared.total)
        return text, prepared.done / prepared.total
    since = max(begun, history.prepared_at)
    return say("loading the base model, {span} so far", span=span(now - since)), 0.0


def saved_lines(run: Run, history: History, now: float) -> list[str]:
    """Plain texts: the step that is saved here, and the one that is safe in the remote copy."""
    texts = [say("nothing saved yet")]
    if history.saved:
        ago = span(now - history.saved_at)
        texts = [say("saved here: step {step} ({span} ago)", step=history.saved.step, span=ago)]
    if run.project.remote is None:
        return texts
    # imported late: a project without a remote copy never needs it
    from lorakit.sync import service

    standing, remote = service.standing(run.project), remote_name(run.project.remote)
    # The newest step whose training state is whole in the remote copy; 0 for none.
    confirmed = standing.confirmed.get(run.name, 0) if standing else 0
    if confirmed:
        texts.append(say("safe on {remote}: step {step}", remote=remote, step=confirmed))
    else:
        texts.append(say("nothing safe on {remote} yet", remote=remote))
    if standing and standing.files_left:
        texts.append(say("{files} files ({size}) to copy", files=standing.files_left, size=size(standing.bytes_left)))
    return texts


def copy_problem(project: Project, now: float) -> str:
    """A banner while files cannot be uploaded to the remote copy: "" for the first HICCUP s, amber, then red."""
    if project.remote is None:
        return ""
    from lorakit.sync import service

    if (standing := service.standing(project)) is None:
        return ""
    # s since the copying last made progress, while files are left
    silent = now - standing.seen if standing.files_left and standing.seen else 0.0
    if standing.trouble and now - standing.since >= HICCUP:
        text, lasted = message(standing.trouble), now - standing.since
    elif silent >= LONG:
        text, lasted = say("Copying has stalled."), silent
        if not standing.is_running:
            text = say("Copying is not running. Open the project again, or train, to restart it.")
        left = say("{files} files ({size}) to copy", files=standing.files_left, size=size(standing.bytes_left))
        text = f"{text} {left}."
    else:
        return ""
    since = say("For {span} now. Training continues meanwhile.", span=span(lasted))
    title = say("Not safe on {remote}", remote=remote_name(project.remote))
    return box(f"{text}\n{since}", AMBER if lasted < LONG else RED, title)


def remote_name(remote: Path) -> str:
    """The remote copy's place as people call it."""
    return "Drive" if "drive" in str(remote).lower() else str(remote)


def _ending(run: Run, history: History, state: str) -> str:
    """What to do next, once training has ended."""
    if state == "finished" and isinstance(history.ended, Finished):
        text = say(
            "LoRA file: {file}\nNext: compare checkpoints and strengths in a grid, then export the best one.",
            file=run.folder / history.ended.lora,
        )
        return box(text, BLUE, say("Finished"))
    if state == "stopped" and history.saved:
        text = say(
            "Everything up to step {step} is saved. Run the cell again to resume from there.", step=history.saved.step
        )
        return box(text, BLUE, say("Stopped"))
    if state == "stopped":
        return box(say("The caches made so far are kept. Run the cell again to continue."), BLUE, say("Stopped"))
    if state in ("failed", "cut"):
        return box(labelled(jobs.fate(run)), RED, say("Failed") if state == "failed" else say("Interrupted"))
    return ""


def _loss(history: History) -> str:
    raw, smooth = history.losses()
    # One point is no curve.
    if len(raw) < 2:
        return ""
    curves = [Curve(say("each step"), raw, GREY, 1, opacity=0.45), Curve(say("smoothed"), smooth)]
    return lines(curves, title=say("Loss curve"), x_label=say("step"), marks=tuple(history.resumes))


def _rates(history: History) -> str:
    rates = history.rates()
    if len(rates) < 2:
        return ""
    return lines([Curve(say("now"), rates)], title=say("Learning rate"), x_label=say("step"), height=110)


def _warning(text: str, count: int) -> str:
    often = f" (× {count})" if count > 1 else ""
    return box(f"{labelled(text)}{often}", AMBER)


# ---- samples ---------------------------------------------------------------------------------------------------------


def samples(run: Run, history: History) -> str:
    """The newest samples: a row for each prompt, a column for each step, oldest left; "" while there are none."""
    steps = sorted(history.samples)[-COLUMNS:]
    # prompts of the last two steps with samples: older ones may have been removed from the settings
    prompts = list(dict.fromkeys(prompt for step in steps[-2:] for prompt in history.samples[step]))
    rows = []
    for prompt in prompts[:PROMPTS]:
        cells = []
        for step in steps:
            # A prompt that was added later has no sample of earlier steps.
            event, epoch = history.samples[step].get(prompt), history.epoch_of(step)
            titles = [say("step {n}", n=step), *([say("epoch {n}", n=epoch)] if epoch else [])]
            cells.append(image_cell(thumbnail(run.folder / event.image) if event else "", titles))
        head = f'<div style="font-size:12px;margin-top:6px">{html.escape(prompt)}</div>'
        rows.append(f"{head}<div>{''.join(cells)}</div>")
    if not rows:
        return ""
    more = [say("and {n} more prompts", n=len(prompts) - PROMPTS)] if len(prompts) > PROMPTS else []
    more = " · ".join([*more, say("full size: {folder}", folder=run.samples)])
    head = f'<div style="font-size:12px;margin-top:8px"><b>{html.escape(say("Samples"))}</b></div>'
    return f'<div style="max-width:{WIDTH}px;line-height:1.5">{head}{"".join(rows)}{aside(more)}</div>'


def image_cell(source: str, titles: list[str]) -> str:
    """A thumbnail, or an empty place of the same width, above its titles, one per line."""
    shown = (
        f'<img src="{source}" style="width:100%;border-radius:4px">' if source else '<div style="height:72px"></div>'
    )
    lines_below = "".join(f'<div style="white-space:nowrap">{html.escape(title)}</div>' for title in titles)
    return (
        '<div style="display:inline-block;width:15.6%;min-width:72px;margin:2px 1% 6px 0;vertical-align:top">'
        f'{shown}<div style="color:{GREY};font-size:11px;line-height:1.3;text-align:center">{lines_below}</div></div>'
    )
