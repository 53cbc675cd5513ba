"""Before the start: what a run will be, what it needs, how long it takes and where it will be when a session ends."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator

import ipywidgets

from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project, Run
from lorakit.run.config import RunConfig, read_config
from lorakit.run.memory import next_rung
from lorakit.training.forecast import Disk, Forecast, StageForecast, forecast
from lorakit.training.probe import Outlook, Probed, outlook, remembered
from lorakit.training.probe import probe as try_steps
from widgets.i18n import say
from widgets.page import AMBER, BLUE, GREY, RED, WIDTH, aside, bar, box, clock, facts, size, span
from widgets.plot import Curve, lines, number

REDRAW = 1.0  # s between two drawings at least
BUCKETS, NOTES = 12, 20  # that are shown at most
TIGHT_MEMORY = 0.95  # share of the memory from which on it is likely to run out
FILES = {
    "states": "saved states",
    "loras": "LoRA files",
    "samples": "samples",
    "images": "encoded images",
    "captions": "encoded captions",
}
PHASES = {"start": "start", "load": "base model", "first step": "first step"}
DOING = {
    "start": "Starting: libraries, images, base model…",
    "images": "Encoding images",
    "captions": "Encoding captions",
    "load": "Loading what is trained…",
    "steps": "Trying real steps",
}


def before_training(what: Run | RunConfig, project: Project | None = None, hours: float = 3.0) -> None:
    """Show what a run, or one of these settings in `project`, will be; `hours` is how long a session lasts.

    Below it a button that tries a few real steps, and a slider for the hours. Raises UserError for what cannot be
    trained at all, such as a dataset without images.
    """
    view = _View(what, project, hours)
    view.show()
    view.show_controls()


def probe(what: Run | RunConfig, project: Project | None = None, hours: float = 3.0) -> None:
    """The same, and try a few real steps at once, in the foreground of the cell; the interrupt button ends that."""
    view = _View(what, project, hours)
    view.show()
    view.probe()


class _View:
    """The display of one cell."""

    def __init__(self, what: Run | RunConfig, project: Project | None, hours: float):
        self.run = what if isinstance(what, Run) else None
        if self.run is None and project is None:
            raise UserError("before_training() needs the project, too: before_training(form.value, project).")
        self.project = self.run.project if self.run else project
        self.config = read_config(self.run) if self.run else what
        self.hours, self.note = hours, ""
        self.told = forecast(self.config, self.project, self.run)
        self.probed = remembered(self.config, self.project)

    def html(self) -> str:
        return render(self.told, self.config, self.probed, self.hours, self.note)

    def show(self) -> None:
        from IPython.display import HTML, display

        self.as_html = HTML
        self.display = display(HTML(self.html()), display_id=True)

    def show_controls(self) -> None:
        from IPython.display import display

        wide = ipywidgets.Layout(width="auto")
        again = say("Try the steps again") if self.probed else say("Try a few real steps")
        button = ipywidgets.Button(description=again, layout=wide)
        slider = ipywidgets.FloatSlider(
            value=self.hours,
            min=0.5,
            max=24,
            step=0.5,
            readout_format=".1f",
            description=say("hours a session"),
            style={"description_width": "initial"},
            layout=wide,
        )
        button.on_click(lambda _: self._click(button))
        slider.observe(self._set_hours, "value")
        display(ipywidgets.VBox([button, slider], layout=ipywidgets.Layout(max_width=f"{WIDTH // 2}px")))

    def draw(self) -> None:
        self.display.update(self.as_html(self.html()))

    def _set_hours(self, change: dict) -> None:
        self.hours = change["new"]
        self.draw()

    def _click(self, button: ipywidgets.Button) -> None:
        button.disabled = True
        try:
            self.probe()
        finally:
            button.disabled = False

    def probe(self) -> None:
        """Try the steps, with a line that says what is being done."""
        drawn = 0.0
        try:
            for event in try_steps(self.config, self.project):
                if isinstance(event, Probed):
                    self.probed, self.note = event, ""
                elif time.monotonic() - drawn >= REDRAW:
                    self.note, drawn = doing(event), time.monotonic()
                    self.draw()
            self.told = forecast(self.config, self.project, self.run)  # what is encoded by now
        except KeyboardInterrupt:
            self.note = box(say("Stopped. What was encoded is kept; nothing else was changed."), AMBER)
        except UserError as error:
            self.note = box(str(error), RED, say("The steps could not be tried"))
        self.draw()


def doing(event: Progress) -> str:
    """One line on what a probe is doing."""
    told = say(DOING[event.what])
    if event.total > 1:
        told = f"{told} {event.done} / {event.total}"
    return f'<div style="margin:8px 0">{html.escape(told)}{bar(event.done / event.total)}</div>'


# ---- the view --------------------------------------------------------------------------------------------------------


def render(told: Forecast, config: RunConfig, probed: Probed | None = None, hours: float = 3.0, note: str = "") -> str:
    """All of it as HTML; `note` is a piece of HTML of what goes on."""
    pieces = [
        _headline(told),
        *_time(told, config, probed, hours),
        note,
        *(_stage(told, stage) for stage in told.stages),
        _rates(told, config),
        _preparation(told, config),
        _disks(told),
        _notes(told),
    ]
    style = f"max-width:{WIDTH}px;line-height:1.6;overflow-wrap:anywhere"
    return f'<div style="{style}">{"".join(pieces)}</div>'


def _section(title: str, body: str) -> str:
    return f'<div style="margin:14px 0 0 0"><div style="font-weight:bold">{html.escape(title)}</div>{body}</div>'


def _row(label: str, text: str, share: float | None = None, colour: str = BLUE) -> str:
    """A line: what it is, a small bar, figures; these are broken where there is no room."""
    drawn = ""
    if share is not None:
        drawn = f'<span style="display:inline-block;width:90px;margin-right:10px">{bar(share, colour)}</span>'
    return (
        f'<div style="overflow:hidden"><div style="float:left;width:126px;margin-right:10px;color:{GREY}">'
        f'{html.escape(label)}</div><div style="overflow:hidden">{drawn}'
        f'<span style="display:inline-block">{html.escape(text)}</span></div></div>'
    )


def _headline(told: Forecast) -> str:
    images = sum(stage.images for stage in told.stages)
    steps = say("{n} steps", n=f"{told.steps:,}")
    rest = [say("{n} epochs", n=told.epochs), say("{n} images seen", n=f"{images:,}")]
    rest += [say("{n} steps are done", n=f"{told.done:,}")] if told.done else []
    return f'<div style="font-size:20px;font-weight:bold">{html.escape(steps)}</div>{facts(rest)}'


def _time(told: Forecast, config: RunConfig, probed: Probed | None, hours: float) -> Iterator[str]:
    """What the probe told, in time and memory."""
    if probed is None:
        yield aside(say("How long it takes and how much memory it needs is not known yet: try a few real steps."))
        return
    ahead = outlook(told, probed, hours)
    share = probed.peak_memory_gb / probed.total_memory_gb
    is_tight = share > TIGHT_MEMORY
    memory = say("{peak} of {total} GB", peak=f"{probed.peak_memory_gb:.1f}", total=f"{probed.total_memory_gb:.1f}")
    phases = ", ".join(
        f"{say(PHASES[name])} {say('{n} s', n=f'{s:.1f}')}" for name, s in probed.phases.items() if name in PHASES
    )
    speed = f"{span_of_step(probed.seconds_per_step)} · {say('{n} images/s', n=number(probed.images_per_second))}"
    body = [
        _row(say("whole run"), _when(ahead)),
        _row(say("a step"), speed),
        _row(say("first step after"), f"{span(probed.seconds_to_first_step)} ({phases})"),
        _row(say("most memory"), f"{memory}, {probed.device}", share, RED if is_tight else BLUE),
    ]
    yield _section(say("Time and memory"), "".join([_session(told, ahead, hours), *body]))
    if is_tight and (rung := next_rung(config)):
        settings = " ".join(f"{name}={str(value).lower()}" for name, value in rung.change(config).items())
        yield box(f"{settings}\n{rung.name}: {rung.price}", AMBER, say("Memory may run out; this gives some back"))


def span_of_step(seconds: float) -> str:
    """A short time with its unit."""
    return say("{n} ms", n=round(1000 * seconds)) if seconds < 1 else say("{n} s", n=number(seconds))


def _when(ahead: Outlook) -> str:
    if ahead.sessions > 1:
        return say("{span} in {n} sessions", span=span(ahead.seconds), n=ahead.sessions)
    return say(
        "{span}, until {clock} if it starts now", span=span(ahead.seconds), clock=clock(time.time() + ahead.seconds)
    )


def _session(told: Forecast, ahead: Outlook, hours: float) -> str:
    """Where the run is when the session ends, as a sentence and a bar."""
    if ahead.step >= told.steps:
        line = say("It will be finished within a session of {hours} h.", hours=f"{hours:g}")
    else:
        line = say(
            "After {hours} h: step {step} of {steps}, {epochs} of {all} epochs done; {sessions} sessions in all.",
            hours=f"{hours:g}",
            step=f"{ahead.step:,}",
            steps=f"{told.steps:,}",
            epochs=ahead.epochs,
            all=told.epochs,
            sessions=ahead.sessions,
        )
    return f'<div style="margin:4px 0 6px 0">{html.escape(line)}{bar(ahead.step / told.steps)}</div>'


# ---- data and steps --------------------------------------------------------------------------------------------------


def _stage(told: Forecast, stage: StageForecast) -> str:
    """Concept folders and sizes of a stage."""
    title = say("Images and steps")
    if len(told.stages) > 1:
        first = stage.last - stage.steps + 1
        title = say("Stage of steps {first} to {last}", first=f"{first:,}", last=f"{stage.last:,}")
    rows = [
        _row(
            say("steps an epoch"),
            say("{n}, each of up to {batch} images", n=stage.steps_per_epoch, batch=stage.batch),
        )
    ]
    for concept in stage.concepts:
        name = concept.name or say("data folder")
        counted = say("{n} images × {repeats}", n=concept.images, repeats=concept.repeats)
        rows.append(_row(name, f"{counted} · {say('regularization')}" if concept.is_reg else counted))
    most = max(bucket.samples for bucket in stage.buckets)
    ordered = sorted(stage.buckets, key=lambda bucket: -bucket.samples)
    for bucket in ordered[:BUCKETS]:
        figures = [say("{n} images", n=bucket.images)]
        figures += [say("{n} enlarged", n=bucket.enlarged)] if bucket.enlarged else []
        figures += [say("{n} lose an edge", n=bucket.cropped)] if bucket.cropped else []
        rows.append(_row(f"{bucket.size[0]} × {bucket.size[1]} px", " · ".join(figures), bucket.samples / most))
    if len(ordered) > BUCKETS:
        rows.append(aside(say("and {n} more sizes", n=len(ordered) - BUCKETS)))
    return _section(title, "".join(rows))


def _rates(told: Forecast, config: RunConfig) -> str:
    curve = Curve("", [(step, rate) for step, rate in enumerate(told.lr, 1)])
    ends = tuple(float(stage.last) for stage in told.stages[:-1])
    drawn = lines([curve], title=say("learning rate"), x_label=say("step"), marks=(*ends, float(told.done)), height=140)
    if OPTIMIZERS[config.optimizer.name].adapts_rate:
        drawn += aside(say("This optimizer finds the learning rate itself; the curve is a factor on it."))
    return drawn


def _notes(told: Forecast) -> str:
    if not told.notes:
        return ""
    items = "".join(f"<div>{html.escape(note)}</div>" for note in told.notes[:NOTES])
    more = aside(say("and {n} more", n=len(told.notes) - NOTES)) if len(told.notes) > NOTES else ""
    title = html.escape(say("{n} notes on the images", n=len(told.notes)))
    return (
        f'<details style="margin:14px 0 0 0"><summary style="cursor:pointer;color:{AMBER}">{title}</summary>'
        f'<div style="font-size:12px;margin:4px 0 0 16px">{items}{more}</div></details>'
    )


# ---- what it needs ---------------------------------------------------------------------------------------------------


def _preparation(told: Forecast, config: RunConfig) -> str:
    rows = [_row(say("precision"), precision(told))]
    if told.weights is not None:
        count = say("{n} numbers", n=f"{told.weights:,}")
        rows.append(_row(say("trained"), f"{count}, {config.adapter.type}, rank {config.adapter.rank}"))
    for label, cached in ((say("images"), told.images), (say("captions"), told.texts)):
        if cached is not None and cached.total:
            there = say("{there} of {total} encoded already", there=cached.there, total=cached.total)
            rows.append(_row(label, there, cached.there / cached.total))
    return _section(say("Base and preparation"), "".join(rows) + (box(told.unknown, AMBER) if told.unknown else ""))


def precision(told: Forecast) -> str:
    """Which precision, and why."""
    if told.asked_precision != "auto":
        return say("{precision}, as was chosen", precision=told.precision)
    if told.capability is None:
        return say("{precision}: there is no GPU here", precision=told.precision)
    fields = {"precision": told.precision, "device": told.device, "capability": "{}.{}".format(*told.capability)}
    if told.capability >= (8, 0):
        return say("{precision}: {device} computes in it (compute capability {capability})", **fields)
    return say("{precision}: {device} has no fast bf16 (compute capability {capability}, 8.0 is needed)", **fields)


def _disks(told: Forecast) -> str:
    if not told.written:
        return _section(say("Disk space"), aside(say("Not known until the base is there.")))
    rows = [
        _row(say(FILES[row.what]), f"{row.count} × {size(row.each)} = {size(row.count * row.each)}")
        for row in told.written
        if row.count
    ]
    return _section(say("Disk space"), "".join(rows) + "".join(map(_disk, told.disks)))


def _disk(disk: Disk) -> str:
    label = say("remote copy") if disk.is_remote else say("on this machine")
    if disk.free is None:
        return _row(label, say("{needed} more; how much is free is not known", needed=size(disk.needed)))
    colour = RED if disk.is_tight else BLUE
    told = say("{needed} more of {free} free", needed=size(disk.needed), free=size(disk.free))
    drawn = _row(label, told, disk.needed / max(1, disk.free), colour)
    if disk.is_tight:
        title = say("It will not fit") if disk.needed > disk.free else say("It will hardly fit")
        cure = say(
            "Make room in {folder}, or write less: save.every_epochs and sample.every_epochs say how often.",
            folder=disk.folder,
        )
        drawn += box(cure, RED, title)
    return drawn
