"""The live view of a run, drawn from its folder alone, so that any cell of any kernel can show it at any time."""

from __future__ import annotations

import html
import time
from pathlib import Path

from lorakit.errors import UserError
from lorakit.events import Finished
from lorakit.project import Project, Run
from lorakit.training import jobs
from widgets.i18n import say
from widgets.images import thumbnail
from widgets.page import AMBER, BLUE, GREY, RED, WIDTH, aside, bar, box, clock, facts, size, span
from widgets.plot import Curve, lines, number
from widgets.training.history import History
from widgets.waiting import Queue

REDRAW = 1.0  # s between two drawings at least
PROMPTS, COLUMNS, WARNINGS = 4, 6, 5  # that are shown at most
STATES = {
    "new": "not begun",
    "running": "training",
    "stopped": "stopped",
    "finished": "finished",
    "failed": "failed",
    "cut": "cut off",
}
KINDS = {"images": "images", "pictures": "images", "captions": "captions"}  # of things that are prepared
ENDING = 0.5  # s after an interrupt in which a kernel that is to end has been told so
HICCUP, LONG = 5, 60  # s that trouble at home may last before it is told, and before it is alarming


def train(run: Run) -> None:
    """Start the run's trainer, or go on with it, and watch it; about the interrupt button see `watch`."""
    _watch(run, starts=True)


def watch(run: Run) -> None:
    """Show a run in the foreground of a cell, all of it at once, and follow it until its trainer is gone, or until
    another cell is run, which this one gives way to.

    The interrupt button asks the trainer to finish its step, save and stop, and goes on watching until it has; a
    second one only ends the watching. Raises UserError outside of a notebook.
    """
    _watch(run, starts=False)


def render(run: Run) -> str:
    """All of the view as HTML. Needs nothing but the run's folder."""
    history = History(run.log).read_on()
    return figures(run, history) + samples(run, history)


# ---- in a cell -------------------------------------------------------------------------------------------------------


def _watch(run: Run, starts: bool) -> None:
    from IPython import get_ipython

    if (kernel := getattr(get_ipython(), "kernel", None)) is None:
        verb = "start" if starts else "watch"
        raise UserError(
            f"This view needs a notebook. In a terminal: lorakit {verb} {run.project.folder} --run {run.name}"
        )
    screen, queue = _Screen(run), Queue(kernel)
    try:
        try:
            screen.open()
            if starts:
                screen.ask_elsewhere()
                jobs.start(run)
            if not screen.follow(queue):
                screen.note = say(
                    "Training goes on. This view ended as the notebook had something else to do: run this cell again."
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
        screen.note = say("No longer watched. The trainer still saves and stops; run the cell again to see it.")
    finally:
        screen.finish()
        queue.close()


def _is_ending(kernel: object) -> bool:
    """True when a kernel was interrupted because it is shut down or restarted: then training goes on without it.

    Jupyter interrupts a kernel first and asks it to end a moment later; nothing but this attribute tells (None: not).
    """
    until = time.monotonic() + ENDING
    try:
        while time.monotonic() < until and (asked := getattr(kernel, "_shutdown_message", None)) is None:
            time.sleep(0.02)
    except KeyboardInterrupt:  # somebody who means it
        return False
    return asked is not None


class _Screen:
    """The two displays of a cell: figures, drawn once a second, and samples, drawn when there are new ones."""

    def __init__(self, run: Run):
        from IPython.display import HTML, DisplayHandle

        self.run, self.note, self.html = run, "", HTML
        self.history, self.painted, self.drawn = History(run.log), "", 0.0
        self.top, self.below = DisplayHandle(), DisplayHandle()

    def open(self) -> None:
        """The first drawing, all of it."""
        self.painted = samples(self.run, self.history.read_on())
        self.top.display(self.html(figures(self.run, self.history)))
        self.below.display(self.html(self.painted))
        self.drawn = time.monotonic()

    def ask_elsewhere(self) -> None:
        """Say what takes its time before a run with a home is started."""
        if self.run.project.remote is not None and not jobs.is_alive(self.run):
            self.note = say("Making sure that no other machine trains this run (up to 3 minutes)…")
            self.draw()
            self.note = ""

    def follow(self, queue: Queue | None = None) -> bool:
        """Draw, at most once in REDRAW s, until the trainer is gone; False when the queue has grown before that."""
        for _ in jobs.follow(self.run):
            if queue is not None and queue.has_grown():
                return False
            if time.monotonic() - self.drawn >= REDRAW:
                self.draw()
        return True

    def draw(self) -> None:
        """One update: the samples if there are new ones, else the figures."""
        painted, self.drawn = samples(self.run, self.history.read_on()), time.monotonic()
        if painted != self.painted:
            self.painted = painted
            self.below.update(self.html(painted))
        else:
            self.top.update(self.html(figures(self.run, self.history, self.note)))

    def finish(self) -> None:
        """The last drawing, which stays in the notebook."""
        self.below.update(self.html(samples(self.run, self.history.read_on())))
        self.top.update(self.html(figures(self.run, self.history, self.note)))


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(run: Run, history: History, note: str = "") -> str:
    """Everything but the samples; `note` is what the cell itself has to say."""
    alive, now = jobs.is_alive(run), time.time()
    state = "running" if alive else jobs.history(run)[0]
    pieces = [_headline(run, history, state, now)]
    pieces += [box(note, AMBER)] if note else []
    pieces += [facts(kept(run, history, now))] if history.saved or alive else []
    pieces += [trouble(run.project, now), _ending(run, history, state), _loss(history), _rates(history)]
    pieces += [_warning(text, count) for text, count in list(history.warnings.items())[-WARNINGS:]]
    if alive and not note:
        pieces.append(
            aside(
                say(
                    "■ (interrupt) finishes the step, saves and stops. To leave it training, just close the tab; run "
                    "this cell again to come back."
                )
            )
        )
    return f'<div style="max-width:{WIDTH}px;line-height:1.5">{"".join(pieces)}</div>'


def _headline(run: Run, history: History, state: str, now: float) -> str:
    """Name and state, how much is done, and the figures of the moment."""
    doing = _doing(run, history, now) if state == "running" else None
    words, share = doing or (say(STATES[state]), history.step / max(1, history.total))
    told = []
    if history.total:
        told.append(say("step {step} / {steps}", step=history.step, steps=history.total))
    if (epoch := history.epoch_of(history.step)) is not None:
        told.append(say("epoch {n}", n=epoch))
    if state == "running" and not doing and (left := history.seconds_left()) is not None:
        told.append(say("{span} left, done about {clock}", span=span(left), clock=clock(now + left)))
    if speed := history.images_per_second():
        told.append(say("{n} images/s", n=number(speed, 2)))
        told.append(say("{n} GB memory", n=f"{history.steps[history.step].memory_gb:.1f}"))
    if history.started:
        told.append(f"{history.started.precision} · {history.started.device}")
    head = f"<b>{html.escape(run.name)}</b> · {html.escape(words)}"
    return f'<div style="line-height:1.6">{head}</div><div style="margin:6px 0">{bar(share)}</div>{facts(told)}'


def _doing(run: Run, history: History, now: float) -> tuple[str, float] | None:
    """What a living trainer does before its first step, in words, and how much of that is done; None from then on."""
    trainer = jobs.last_trainer(run)
    begun = trainer.begun if trainer else now
    if history.started_at >= begun:
        return None
    prepared = history.prepared
    if prepared and history.prepared_at >= begun and prepared.done < prepared.total:
        what = say(KINDS[prepared.what])
        words = say("preparing: {what} {done} / {total}", what=what, done=prepared.done, total=prepared.total)
        return words, prepared.done / prepared.total
    since = max(begun, history.prepared_at)
    return say("loading the model, {span} so far", span=span(now - since)), 0.0


def kept(run: Run, history: History, now: float) -> list[str]:
    """What is saved here and what is safe at home, in words."""
    told = [say("nothing saved yet")]
    if history.saved:
        ago = span(now - history.saved_at)
        told = [say("saved here: step {step} ({span} ago)", step=history.saved.step, span=ago)]
    if run.project.remote is None:
        return told
    from lorakit.sync import service

    standing, remote = service.standing(run.project), remote_name(run.project.remote)
    confirmed = standing.confirmed.get(run.name, 0) if standing else 0
    if confirmed:
        told.append(say("safe on {remote}: step {step}", remote=remote, step=confirmed))
    else:
        told.append(say("nothing safe on {remote} yet", remote=remote))
    if standing and standing.files_left:
        told.append(say("{files} files ({size}) to copy", files=standing.files_left, size=size(standing.bytes_left)))
    return told


def trouble(project: Project, now: float) -> str:
    """A banner when files do not get home: "" for a hiccup, amber at first, then red."""
    if project.remote is None:
        return ""
    from lorakit.sync import service

    if (standing := service.standing(project)) is None:
        return ""
    silent = now - standing.seen if standing.files_left and standing.seen else 0.0
    if standing.trouble and now - standing.since >= HICCUP:
        text, lasted = standing.trouble, now - standing.since
    elif silent >= LONG:
        text, lasted = say("Nothing is copied any more."), silent
        if not standing.is_running:
            text = say("The copying is not running: open the project again, or train, and it goes on.")
        left = say("{files} files ({size}) to copy", files=standing.files_left, size=size(standing.bytes_left))
        text = f"{text} {left}."
    else:
        return ""
    since = say("Since {span}. Training does not wait for it.", span=span(lasted))
    title = say("Not safe on {remote}", remote=remote_name(project.remote))
    return box(f"{text}\n{since}", AMBER if lasted < LONG else RED, title)


def remote_name(remote: Path) -> str:
    """What people call the place where a project lives for good."""
    return "Drive" if "drive" in str(remote).lower() else str(remote)


def _ending(run: Run, history: History, state: str) -> str:
    """What to do next, once nobody trains."""
    if state == "finished" and isinstance(history.ended, Finished):
        told = say(
            "The file: {file}\nNext: compare checkpoints and strengths in a grid, then take the best one with you.",
            file=run.folder / history.ended.lora,
        )
        return box(told, BLUE, say("Finished"))
    if state == "stopped" and history.saved:
        told = say("Everything up to step {step} is kept; start again to go on from there.", step=history.saved.step)
        return box(told, BLUE, say("Stopped"))
    if state == "stopped":
        return box(say("What was prepared is kept; start again to go on from there."), BLUE, say("Stopped"))
    if state in ("failed", "cut"):
        return box(jobs.fate(run), RED, say("Failed") if state == "failed" else say("Cut off"))
    return ""


def _loss(history: History) -> str:
    raw, smooth = history.losses()
    if len(raw) < 2:
        return ""
    curves = [Curve(say("each step"), raw, GREY, 1, opacity=0.45), Curve(say("smoothed"), smooth)]
    return lines(curves, title=say("Loss curve"), x_label=say("step"), marks=tuple(history.sittings))


def _rates(history: History) -> str:
    rates = history.rates()
    if len(rates) < 2:
        return ""
    return lines([Curve(say("now"), rates)], title=say("Learning rate"), x_label=say("step"), height=110)


def _warning(text: str, count: int) -> str:
    often = f" (× {count})" if count > 1 else ""
    return box(f"{text}{often}", AMBER)


# ---- samples ---------------------------------------------------------------------------------------------------------


def samples(run: Run, history: History) -> str:
    """The newest samples: a row for each prompt, a column for each step, oldest left; "" while there are none."""
    steps = sorted(history.samples)[-COLUMNS:]
    prompts = list(dict.fromkeys(prompt for step in steps[-2:] for prompt in history.samples[step]))
    rows = []
    for prompt in prompts[:PROMPTS]:
        cells = []
        for step in steps:
            event, epoch = history.samples[step].get(prompt), history.epoch_of(step)
            titles = [say("step {n}", n=step), *([say("epoch {n}", n=epoch)] if epoch else [])]
            cells.append(image_cell(thumbnail(run.folder / event.image) if event else "", titles))
        head = f'<div style="font-size:12px;margin-top:6px">{html.escape(prompt)}</div>'
        rows.append(f"{head}<div>{''.join(cells)}</div>")
    if not rows:
        return ""
    more = [say("and {n} more prompts", n=len(prompts) - PROMPTS)] if len(prompts) > PROMPTS else []
    told = " · ".join([*more, say("whole images: {folder}", folder=run.samples)])
    head = f'<div style="font-size:12px;margin-top:8px"><b>{html.escape(say("Samples"))}</b></div>'
    return f'<div style="max-width:{WIDTH}px;line-height:1.5">{head}{"".join(rows)}{aside(told)}</div>'


def image_cell(source: str, titles: list[str]) -> str:
    """A thumbnail, or an empty place of the same width, above its titles, a line each."""
    shown = (
        f'<img src="{source}" style="width:100%;border-radius:4px">' if source else '<div style="height:72px"></div>'
    )
    told = "".join(f'<div style="white-space:nowrap">{html.escape(title)}</div>' for title in titles)
    return (
        '<div style="display:inline-block;width:15.6%;min-width:72px;margin:2px 1% 6px 0;vertical-align:top">'
        f'{shown}<div style="color:{GREY};font-size:11px;line-height:1.3;text-align:center">{told}</div></div>'
    )
