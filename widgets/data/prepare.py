"""Preparing the images in a cell: a form for cropping and resizing, its result, and the buckets of the next run."""

from __future__ import annotations

import html
import time
from dataclasses import fields, replace

import ipywidgets

from lorakit.config import ConfigError, check
from lorakit.data.buckets import Bucket, FittedImage, group_by_bucket
from lorakit.data.scan import DataError, scan
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.prepare.crop import FOLDER, PrepareConfig, read_prepare_config, write_prepare_config
from lorakit.prepare.crop import prepare as preparing
from lorakit.project import Project
from lorakit.sync import service
from widgets.data.thumbnails import Thumbnails
from widgets.fields import Row
from widgets.i18n import say
from widgets.layouts import Layouts
from widgets.page import AMBER, GREY, RED, WIDTH, aside, bar, box, facts
from widgets.plain import show
from widgets.project.draft import Draft
from widgets.project.labels import labelled

REDRAW = 0.5  # s
NOTES = 12  # lines of notes at most
HEIGHT = 96  # px of a thumbnail
# Share of an image's area; cropping this much or more is reported.
CUT = 0.1


def prepare(project: Project) -> None:
    """Show a form for cropping, padding and resizing copies of the images, with a button that creates them."""
    from IPython.display import HTML, display

    try:
        show(PrepareForm(project).widget)
    except UserError as error:
        display(HTML(box(labelled(str(error)), RED)))


def buckets_preview(project: Project, shown: int = 60) -> None:
    """Show how many images are trained at which size, and what is cropped (darkened) of up to `shown` images."""
    from IPython.display import HTML, display

    draft = Draft(project)
    try:
        buckets = group_by_bucket(scan(draft.data, project.folder).samples, draft.data)
    except DataError as error:
        display(HTML(box(labelled(str(error)), AMBER)))
        return
    display(HTML(render(buckets, draft.shown["loop.batch_size"], Thumbnails(project), shown)))


class PrepareForm:
    """The widget: `widget` is to be displayed; every change is in the project's prepare.yaml at once."""

    def __init__(self, project: Project):
        self.project, self.config = project, read_prepare_config(project)
        layouts = Layouts()
        names = [f.name for f in fields(PrepareConfig) if not f.metadata["ui"].hidden]
        self.rows = {
            name: Row(layouts, f"prepare.{name}", (PrepareConfig, name), self._changed, self._undone) for name in names
        }
        self.button = ipywidgets.Button(
            description=say("Prepare the images"), button_style="primary", layout=ipywidgets.Layout(width="auto")
        )
        self.button.on_click(lambda _: self.make())
        self.use = ipywidgets.Button(layout=ipywidgets.Layout(width="auto"))
        self.use.on_click(lambda _: self._toggle())
        self.status = ipywidgets.HTML()
        buttons = ipywidgets.HBox([self.button, self.use], layout=ipywidgets.Layout(flex_flow="row wrap"))
        children = [*(row.widget for row in self.rows.values()), buttons, self.status]
        self.widget = ipywidgets.VBox(children, layout=ipywidgets.Layout(width="100%", max_width="1240px"))
        self._show()

    def make(self) -> None:
        """Prepare the images; stopped, it resumes when the button is pressed again."""
        notes, drawn, done = [], 0.0, 0
        try:
            for event in preparing(self.project, Draft(self.project).data, self.config):
                if not isinstance(event, Progress):
                    notes.append(str(event))
                    continue
                done = event.done
                if time.monotonic() - drawn > REDRAW:
                    drawn = time.monotonic()
                    text = say("{done} of {total} images prepared", done=done, total=event.total)
                    self.status.value = html.escape(text) + bar(done / max(1, event.total))
        except UserError as error:
            self.status.value = box(labelled(str(error)), RED)
            return
        except KeyboardInterrupt:
            self.status.value = aside(say("Stopped. Press the button again to continue."))
            return
        service.start(self.project)
        self.status.value = self._result(done, notes)
        self._show()

    def _result(self, count: int, notes: list[str]) -> str:
        folder = self.project.folder / FOLDER
        text = say("{n} images are in {folder}; the originals are unchanged.", n=count, folder=folder)
        return f'<div style="line-height:1.5">{html.escape(text)}</div>' + notes_html(notes)

    def _changed(self, row: Row) -> None:
        name = row.path.rpartition(".")[2]
        try:
            config = replace(self.config, **{name: check(PrepareConfig, name, row.control.read())})
        except ConfigError as error:
            row.show(getattr(self.config, name), by_hand=True, problem=labelled(str(error)), keeps=True)
            return
        self._set(config)

    def _undone(self, row: Row) -> None:
        name = row.path.rpartition(".")[2]
        self._set(replace(self.config, **{name: getattr(PrepareConfig(), name)}))

    def _set(self, config: PrepareConfig) -> None:
        self.config = config
        write_prepare_config(self.project, config)
        self._show()

    def _toggle(self) -> None:
        """Let the next run train on the prepared images, or on the originals again."""
        draft = Draft(self.project)
        if self._is_used():
            draft.set("data.folder", self.config.folder)
        else:
            # The folder of the originals is noted first: switching back needs it.
            self.config = replace(self.config, folder=draft.data.folder)
            write_prepare_config(self.project, self.config)
            draft.set("data.folder", FOLDER)
        self.status.value = aside(say("The next run trains on {folder}.", folder=Draft(self.project).data.folder))
        self._show()

    def _is_used(self) -> bool:
        return Draft(self.project).data.folder == FOLDER

    def _show(self) -> None:
        defaults = PrepareConfig()
        for name, row in self.rows.items():
            value = getattr(self.config, name)
            row.show(value, by_hand=value != getattr(defaults, name), problem="")
            row.hide(row.when is not None and getattr(self.config, row.when[0]) not in row.when[1])
        is_used = self._is_used()
        self.use.description = say("Train on the originals again") if is_used else say("Train on the prepared images")
        self.use.tooltip = say("Changes the dataset folder of the next run")
        is_there = is_used or (self.project.folder / FOLDER).is_dir()
        self.use.layout.display = "" if is_there else "none"


def notes_html(notes: list[str]) -> str:
    """Notes on files as HTML: the first NOTES of them visible, the others folded."""
    if not notes:
        return ""
    more = "".join(f"<div>{html.escape(note)}</div>" for note in notes[NOTES:])
    rest = say("and {n} more", n=len(notes) - NOTES)
    folded = f"<details><summary>{html.escape(rest)}</summary>{more}</details>" if more else ""
    return box("\n".join(notes[:NOTES]), AMBER) + folded


# ---- buckets ---------------------------------------------------------------------------------------------------------


def render(buckets: list[Bucket], batch: int, thumbnails: Thumbnails, shown: int) -> str:
    """Buckets as HTML: warnings, then each bucket with its images, the most cropped first."""
    images = [fitted for bucket in buckets for fitted in bucket.images]
    # At least two of each bucket, so that small ones are seen, too.
    each = max(2, shown // len(buckets))
    blocks = "".join(_block(bucket, max(b.images_per_epoch for b in buckets), thumbnails, each) for bucket in buckets)
    lines = [
        say("{n} images", n=len(images)),
        say("{n} buckets", n=len(buckets)),
        say("{n} images per epoch", n=sum(bucket.images_per_epoch for bucket in buckets)),
    ]
    warnings = "".join(box(text, AMBER) for text in _warnings(buckets, images, batch))
    return f'<div style="max-width:{WIDTH}px;font-size:13px">{facts(lines)}{warnings}{blocks}</div>'


def _warnings(buckets: list[Bucket], images: list[FittedImage], batch: int) -> list[str]:
    few = [bucket for bucket in buckets if bucket.images_per_epoch < batch]
    enlarged = [fitted.scale for fitted in images if fitted.scale > 1]
    cut = [fitted for fitted in images if fitted.lost >= CUT]
    texts = []
    if few:
        text = say(
            "{n} buckets have fewer images than a batch of {batch}, so some steps train on fewer. Crop these images to "
            "more common shapes, raise their repeats, or choose a larger bucket step.",
            n=len(few),
            batch=batch,
        )
        texts.append(text)
    if enlarged:
        text = say(
            "{n} images are upscaled (up to {factor}×) and become blurry. Use larger images or lower the resolution.",
            n=len(enlarged),
            factor=f"{max(enlarged):.2g}",
        )
        texts.append(text)
    if cut:
        text = say("{n} images lose 10 % or more to cropping", n=len(cut))
        texts.append(text)
    return texts


def _block(bucket: Bucket, most: int, thumbnails: Thumbnails, each: int) -> str:
    """A bucket: its size, how full it is, and some of its images."""
    # Those that lose most to cropping are the ones to look at.
    images = sorted(bucket.images, key=lambda fitted: -fitted.lost)[:each]
    sources = thumbnails.sources([fitted.sample for fitted in images])
    lines = [
        "{} × {} px".format(*bucket.size),
        say("{n} images", n=len(bucket.images)),
        say("{n} images per epoch", n=bucket.images_per_epoch),
    ]
    hidden = len(bucket.images) - len(images)
    more = aside(say("and {n} more", n=hidden)) if hidden else ""
    small = "".join(_small(fitted, source) for fitted, source in zip(images, sources, strict=True))
    return (
        f'<div style="margin:14px 0 4px 0"><b>{lines[0]}</b> '
        f'<span style="color:{GREY}">· {html.escape(" · ".join(lines[1:]))}</span>'
        f"{bar(bucket.images_per_epoch / most, height=4)}</div>"
        f'<div style="display:flex;flex-wrap:wrap;gap:6px">{small}</div>{more}'
    )


def _small(fitted: FittedImage, source: str) -> str:
    """A thumbnail with the cropped parts darkened; an upscaled image also shows its factor."""
    # `kept` is the part that is trained, as shares of left, top, width and height; here in percent.
    sample, (left, top, width, height) = fitted.sample, (100 * share for share in fitted.kept)
    # At most 2.5 times as wide as high: a panorama would fill the page.
    width_px = min(5 * HEIGHT // 2, round(HEIGHT * sample.width / sample.height))
    title = say("{name}: {share} % cropped", name=sample.name, share=round(100 * fitted.lost))
    factor = (
        f'<span style="position:absolute;right:0;bottom:0;background-color:{AMBER};color:white;font-size:11px;'
        f'line-height:1.3;padding:0 4px">× {fitted.scale:.2g}</span>'
        if fitted.scale > 1
        else ""
    )
    place = f"position:relative;overflow:hidden;width:{width_px}px;height:{HEIGHT}px"
    return (
        f'<div title="{html.escape(title)}" style="{place}">'
        f'<img src="{source}" alt="{html.escape(sample.name)}" style="width:100%;height:100%;margin:0;display:block">'
        f'<div style="position:absolute;left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%;'
        f'box-sizing:border-box;box-shadow:0 0 0 999px rgba(0,0,0,.65)"></div>{factor}</div>'
    )
