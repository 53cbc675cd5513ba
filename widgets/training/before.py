"""Before training: the steps of a run, what it needs, how long it takes, and how far a session gets."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator

import ipywidgets

from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.machine.gpu import at_hand
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project, Run
from lorakit.run.config import RunConfig, read_config
from lorakit.run.memory import next_rung
from lorakit.training.forecast import Disk, Forecast, StageForecast, forecast
from lorakit.training.probe import Outlook, Probed, outlook, remembered
from lorakit.training.probe import probe as try_steps
from widgets.choices import choice_label
from widgets.fields import value_text
from widgets.i18n import say
from widgets.page import AMBER, BLUE, GREY, RED, WIDTH, aside, bar, box, clock, facts, size, span
from widgets.plain import show
from widgets.plot import Curve, lines, number
from widgets.project.labels import labelled
from widgets.training.vram import need_html

REDRAW = 1.0  # s between two updates at least
BUCKETS, NOTES = 12, 20  # shown at most
# Share of the memory above which training is likely to run out of it.
TIGHT_MEMORY = 0.95
# files that a run writes (see forecast.Written) -> their name
FILES = {
    "states": "training states",
    "loras": "LoRA files",
    "samples": "samples",
    "images": "cached images (latents)",
    "captions": "cached captions (text encodings)",
}
# phases before the first step -> their name; others are part of these
PHASES = {"start": "start", "load": "base model", "first step": "first step"}
# what a probe is doing (see Progress) -> a line about it
DOING = {
    "start": "Starting: loading libraries, images and the base model…",
    "images": "Caching images",
    "captions": "Caching captions",
    "load": "Loading the model to train…",
    "steps": "Measuring steps",
}


def before_training(what: Run | RunConfig, project: Project | None = None, hours: float = 3.0) -> None:
    """Show what training a run, or these settings in `project`, will need; a session lasts `hours`.

    Below it are a button that measures a few real steps, and a slider for the hours. Raises UserError for a run that
    cannot be trained at all, such as one without images.
    """
    view = _View(what, project, hours)
    view.show()
    view.show_controls()


def probe(what: Run | RunConfig, project: Project | None = None, hours: float = 3.0) -> None:
    """The same, and measure a few real steps at once in this cell; the interrupt button stops that."""
    view = _View(what, project, hours)
    view.show()
    view.probe()


class _View:
    """What one cell shows, and its controls."""

    def __init__(self, what: Run | RunConfig, project: Project | None, hours: float):
        self.run = what if isinstance(what, Run) else None
        if self.run is None and project is None:
            raise UserError(say("before_training() needs the project, too: before_training(form.value, project)."))
        self.project = self.run.project if self.run else project
        self.config = read_config(self.run) if self.run else what
        self.hours, self.note = hours, ""
        self.forecast = forecast(self.config, self.project, self.run)
        # An earlier measurement of the same settings on this machine is shown again.
        self.probed = remembered(self.config, self.project)
        # until then what is computed, which is of use where there is a GPU
        self.vram = need_html(self.config) if at_hand() and not self.probed else ""

    def html(self) -> str:
        return render(self.forecast, self.config, self.probed, self.hours, self.note, self.vram)

    def show(self) -> None:
        from IPython.display import HTML, display

        self.as_html = HTML
        self.display = display(HTML(self.html()), display_id=True)

    def show_controls(self) -> None:

        wide = ipywidgets.Layout(width="auto")
        label = say("Measure again") if self.probed else say("Measure speed and memory")
        button = ipywidgets.Button(description=label, layout=wide)
        slider = ipywidgets.FloatSlider(
            value=self.hours,
            min=0.5,
            max=24,
            step=0.5,
            readout_format=".1f",
            description=say("Hours per session"),
            style={"description_width": "initial"},
            layout=wide,
        )
        button.on_click(lambda _: self._click(button))
        slider.observe(self._set_hours, "value")
        # A click is handled only when no cell runs, which is so below a cell that has ended.
        show(ipywidgets.VBox([button, slider], layout=ipywidgets.Layout(max_width=f"{WIDTH // 2}px")))

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
        """Measure the steps, with a line about what is being done."""
        updated = 0.0
        try:
            for event in try_steps(self.config, self.project):
                if isinstance(event, Probed):
                    self.probed, self.note = event, ""
                elif time.monotonic() - updated >= REDRAW:
                    self.note, updated = doing(event), time.monotonic()
                    self.draw()
            # Images and captions are cached now, which the figures of the caches show.
            self.forecast = forecast(self.config, self.project, self.run)
        except KeyboardInterrupt:
            self.note = box(say("Stopped. The caches are kept; nothing else was changed."), AMBER)
        except UserError as error:
            self.note = box(labelled(str(error)), RED, say("Measuring failed"))
        self.draw()


def doing(event: Progress) -> str:
    """One line, as HTML, about what a probe is doing."""
    text = say(DOING[event.what])
    if event.total > 1:
        text = f"{text} {event.done} / {event.total}"
    return f'<div style="margin:8px 0">{html.escape(text)}{bar(event.done / event.total)}</div>'


# ---- the view --------------------------------------------------------------------------------------------------------


def render(
    plan: Forecast,
    config: RunConfig,
    probed: Probed | None = None,
    hours: float = 3.0,
    note: str = "",
    vram: str = "",
) -> str:
    """The whole view as HTML; `note` is a piece of HTML about a probe, `vram` one about the computed need of memory."""
    pieces = [
        _headline(plan),
        *_time(plan, config, probed, hours),
        "" if probed else vram,
        note,
        *(_stage(plan, stage) for stage in plan.stages),
        _rates(plan, config),
        _preparation(plan, config),
        _disks(plan),
        _notes(plan),
    ]
    style = f"max-width:{WIDTH}px;line-height:1.6;overflow-wrap:anywhere"
    return f'<div style="{style}">{"".join(pieces)}</div>'


def _section(title: str, body: str) -> str:
    return f'<div style="margin:14px 0 0 0"><div style="font-weight:bold">{html.escape(title)}</div>{body}</div>'


def _row(label: str, text: str, share: float | None = None, colour: str = BLUE) -> str:
    """A line: a label, a small bar for `share` (0 to 1), a text that is broken where there is no room."""
    filled = ""
    if share is not None:
        filled = f'<span style="display:inline-block;width:90px;margin-right:10px">{bar(share, colour)}</span>'
    return (
        # Floats rather than a table: on a narrow page the text breaks below its bar.
        f'<div style="overflow:hidden"><div style="float:left;width:126px;margin-right:10px;color:{GREY}">'
        f'{html.escape(label)}</div><div style="overflow:hidden">{filled}'
        f'<span style="display:inline-block">{html.escape(text)}</span></div></div>'
    )


def _headline(plan: Forecast) -> str:
    images = sum(stage.images for stage in plan.stages)
    steps = say("{n} steps", n=f"{plan.steps:,}")
    parts = [say("{n} epochs", n=plan.epochs), say("{n} images in total (with repeats)", n=f"{images:,}")]
    parts += [say("{n} steps done", n=f"{plan.done:,}")] if plan.done else []
    return f'<div style="font-size:20px;font-weight:bold">{html.escape(steps)}</div>{facts(parts)}'


def _time(plan: Forecast, config: RunConfig, probed: Probed | None, hours: float) -> Iterator[str]:
    """Time and memory, from the measured steps."""
    if probed is None:
        yield aside(say("Time and memory are not known yet. Measure a few steps to see them."))
        return
    # the measured steps, extended to the whole run and to sessions of so many hours
    expected = outlook(plan, probed, hours)
    # Of VRAM on a GPU, of RAM on a CPU.
    share = probed.peak_memory_gb / probed.total_memory_gb
    is_tight = share > TIGHT_MEMORY
    memory = say("{peak} of {total} GB", peak=f"{probed.peak_memory_gb:.1f}", total=f"{probed.total_memory_gb:.1f}")
    phases = ", ".join(
        f"{say(PHASES[name])} {say('{n} s', n=f'{s:.1f}')}" for name, s in probed.phases.items() if name in PHASES
    )
    speed = f"{span_of_step(probed.seconds_per_step)} · {say('{n} images/s', n=number(probed.images_per_second))}"
    body = [
        _row(say("whole run"), _when(expected)),
        _row(say("per step"), speed),
        _row(say("time to first step"), f"{span(probed.seconds_to_first_step)} ({phases})"),
        _row(say("peak memory"), f"{memory}, {probed.device}", share, RED if is_tight else BLUE),
    ]
    yield _section(say("Time and memory"), "".join([_session(plan, expected, hours), *body]))
    if is_tight and (rung := next_rung(config)):
        # as in the form: labels of settings, labels of values
        changes = rung.change(config)
        settings = " · ".join(f"{labelled(name)} {value_text(value)}" for name, value in changes.items())
        yield box(f"{settings}\n{rung.name}: {rung.cost}", AMBER, say("Memory may run out. These settings save some"))


def span_of_step(seconds: float) -> str:
    """A short time with its unit."""
    return say("{n} ms", n=round(1000 * seconds)) if seconds < 1 else say("{n} s", n=number(seconds))


def _when(ahead: Outlook) -> str:
    # With breaks between sessions nobody knows the clock time of the end.
    if ahead.sessions > 1:
        return say("{span} in {n} sessions", span=span(ahead.seconds), n=ahead.sessions)
    return say(
        "{span}, until {clock} if started now", span=span(ahead.seconds), clock=clock(time.time() + ahead.seconds)
    )


def _session(plan: Forecast, ahead: Outlook, hours: float) -> str:
    """How far the run is when the session ends: a sentence and a bar."""
    if ahead.step >= plan.steps:
        line = say("It will finish within one session of {hours} h.", hours=f"{hours:g}")
    else:
        line = say(
            "After {hours} h: step {step} of {steps}, {epochs} of {all} epochs; {sessions} sessions in total.",
            hours=f"{hours:g}",
            step=f"{ahead.step:,}",
            steps=f"{plan.steps:,}",
            epochs=ahead.epochs,
            all=plan.epochs,
            sessions=ahead.sessions,
        )
    return f'<div style="margin:4px 0 6px 0">{html.escape(line)}{bar(ahead.step / plan.steps)}</div>'


# ---- data and steps --------------------------------------------------------------------------------------------------


def _stage(plan: Forecast, stage: StageForecast) -> str:
    """The folders of images and the bucket sizes of a stage."""
    title = say("Images and steps")
    if len(plan.stages) > 1:
        # Steps are counted from 1 through all stages.
        first = stage.last - stage.steps + 1
        title = say("Stage: steps {first} to {last}", first=f"{first:,}", last=f"{stage.last:,}")
    rows = [
        _row(
            say("steps per epoch"),
            say("{n} (batch size {batch})", n=stage.steps_per_epoch, batch=stage.batch),
        )
    ]
    for concept in stage.concepts:
        name = concept.name or say("dataset folder")
        counted = say("{n} images × {repeats}", n=concept.images, repeats=concept.repeats)
        rows.append(_row(name, f"{counted} · {say('regularization')}" if concept.is_reg else counted))
    # the largest bucket has a full bar
    most = max(bucket.samples for bucket in stage.buckets)
    ordered = sorted(stage.buckets, key=lambda bucket: -bucket.samples)
    for bucket in ordered[:BUCKETS]:
        figures = [say("{n} images", n=bucket.images)]
        figures += [say("{n} upscaled", n=bucket.enlarged)] if bucket.enlarged else []
        figures += [say("{n} cropped", n=bucket.cropped)] if bucket.cropped else []
        rows.append(_row(f"{bucket.size[0]} × {bucket.size[1]} px", " · ".join(figures), bucket.samples / most))
    if len(ordered) > BUCKETS:
        rows.append(aside(say("and {n} more sizes", n=len(ordered) - BUCKETS)))
    return _section(title, "".join(rows))


def _rates(plan: Forecast, config: RunConfig) -> str:
    curve = Curve("", [(step, rate) for step, rate in enumerate(plan.lr, 1)])
    # a mark where each stage ends, and one where the run is
    ends = tuple(float(stage.last) for stage in plan.stages[:-1])
    plot = lines([curve], title=say("learning rate"), x_label=say("step"), marks=(*ends, float(plan.done)), height=140)
    if OPTIMIZERS[config.optimizer.name].adapts_rate:
        plot += aside(say("This optimizer finds the learning rate itself; the curve is a factor on it."))
    return plot


def _notes(plan: Forecast) -> str:
    if not plan.notes:
        return ""
    items = "".join(f"<div>{html.escape(note)}</div>" for note in plan.notes[:NOTES])
    more = aside(say("and {n} more", n=len(plan.notes) - NOTES)) if len(plan.notes) > NOTES else ""
    title = html.escape(say("{n} notes on the images", n=len(plan.notes)))
    return (
        f'<details style="margin:14px 0 0 0"><summary style="cursor:pointer;color:{AMBER}">{title}</summary>'
        f'<div style="font-size:12px;margin:4px 0 0 16px">{items}{more}</div></details>'
    )


# ---- what it needs ---------------------------------------------------------------------------------------------------


def _preparation(plan: Forecast, config: RunConfig) -> str:
    rows = [_row(say("precision"), precision(plan))]
    # None while the base model is not on this machine.
    if plan.weights is not None:
        count = say("{n} parameters", n=f"{plan.weights:,}")
        rows.append(_row(say("trained"), f"{count}, {choice_label(config.adapter.type)}, rank {config.adapter.rank}"))
    for label, cached in ((say("images"), plan.images), (say("captions"), plan.texts)):
        if cached is not None and cached.total:
            share_text = say("{there} of {total} cached", there=cached.there, total=cached.total)
            rows.append(_row(label, share_text, cached.there / cached.total))
    return _section(
        say("Base model and caches"), "".join(rows) + (box(labelled(plan.unknown), AMBER) if plan.unknown else "")
    )


def precision(plan: Forecast) -> str:
    """The precision, and why it is that."""
    if plan.requested_precision != "auto":
        return say("{precision} (set by hand)", precision=plan.precision)
    if plan.capability is None:
        return say("{precision}: no GPU found", precision=plan.precision)
    # (major, minor) as NVIDIA writes it: 8.0 is Ampere, the first with fast bf16.
    fields = {"precision": plan.precision, "device": plan.device, "capability": "{}.{}".format(*plan.capability)}
    if plan.capability >= (8, 0):
        return say("{precision}: supported by {device} (compute capability {capability})", **fields)
    return say("{precision}: {device} has no fast bf16 (compute capability {capability}; bf16 needs 8.0)", **fields)


def _disks(plan: Forecast) -> str:
    if not plan.written:
        return _section(say("Disk space"), aside(say("Known once the base model is downloaded.")))
    rows = [
        _row(say(FILES[row.what]), f"{row.count} × {size(row.each)} = {size(row.count * row.each)}")
        for row in plan.written
        if row.count
    ]
    return _section(say("Disk space"), "".join(rows) + "".join(map(_disk, plan.disks)))


def _disk(disk: Disk) -> str:
    label = say("remote copy") if disk.is_remote else say("on this machine")
    if disk.free is None:
        return _row(label, say("{needed} needed; free space unknown", needed=size(disk.needed)))
    colour = RED if disk.is_tight else BLUE
    text = say("{needed} needed, {free} free", needed=size(disk.needed), free=size(disk.free))
    # At least 1 byte, as a full disk has none free.
    row = _row(label, text, disk.needed / max(1, disk.free), colour)
    if disk.is_tight:
        title = say("Not enough disk space") if disk.needed > disk.free else say("Disk space is tight")
        advice = say(
            "Free some space in {folder}, or save LoRA files and generate samples less often.",
            folder=disk.folder,
        )
        row += box(advice, RED, title)
    return row
