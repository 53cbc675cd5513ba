"""Running the selected tagger in a cell, with progress, speed and some of the new captions."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator

from lorakit import taggers
from lorakit.data import DataConfig
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.project import Project
from lorakit.sync import service
from lorakit.tags.editor import CaptionEditor, tag_counts
from lorakit.tags.tagging import images_to_tag, read_tagging, score, tag
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import RED, WIDTH, aside, bar, box, facts, span
from widgets.project.draft import Draft
from widgets.project.labels import labelled

REDRAW = 0.5  # s
EXAMPLES = 3  # images that are shown with their new captions


def run_tagger(project: Project, preview: bool = False) -> None:
    """Run the selected tagger in this cell and write captions, as set in the form of `tag_images`.

    preview   score all images, locked ones too, and write no captions; the tag editor shows the scores

    Interrupted, it continues where it stopped when the cell is run again.
    """
    from IPython.display import HTML, display

    view = display(HTML(""), display_id=True)
    show_tagging(project, preview, lambda text: view.update(HTML(text)))


def show_tagging(project: Project, preview: bool, show: Callable[[str], None]) -> None:
    """Run the selected tagger; `show` gets the HTML to display, again and again. Errors are shown, not raised."""
    # Made here: what was done until an error or interrupt is needed to report it.
    timer = Timer()
    try:
        for text in _run(project, preview, timer):
            show(text)
    except UserError as error:
        stored = aside(say("The results of {n} images are stored.", n=timer.images)) if timer.images else ""
        show(box(labelled(str(error)), RED) + stored)
    except KeyboardInterrupt:
        show(aside(say("Stopped after {n} images; their results are stored. Run it to continue.", n=timer.images)))
    service.start(project)


class Timer:
    """How many images were scored, and since when (`start`)."""

    def __init__(self):
        self.images, self.start = 0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def speed(self) -> str:
        """Images per second, as text."""
        speed = self.images / max(self.seconds, 1e-3)
        return say("{n} images/s", n=f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}")


def _run(project: Project, preview: bool, timer: Timer) -> Iterator[str]:
    """Run the tagger; yields the HTML to show now."""
    name, settings, config = read_tagging(project)
    data = Draft(project).data
    editor = CaptionEditor(project, data)
    # Asked before the tagger is loaded: downloading a model for nothing would take minutes.
    if not preview and not images_to_tag(project, editor, taggers.output(name), config.which):
        locked = _locked(editor)
        hint = aside(say("Hand-written captions are locked; the tag editor unlocks them.")) if locked else ""
        yield aside(say("No image needs a caption.")) + facts([say("{n} locked", n=locked)]) + hint
        return
    yield aside(say("Loading the tagger …"))
    tagger = taggers.load(name, settings)
    yield aside(say("Running {tagger} ({device}) …", tagger=tagger.name, device=tagger.runs_on))
    # loading does not count for the speed
    timer.start, drawn, written = time.monotonic(), 0.0, 0
    for event in score(project, data, tagger) if preview else tag(project, data, tagger, config):
        # Captions are written at the end, after all images are scored.
        if event.what == "captions":
            written = event.done
            continue
        timer.images = event.done
        if time.monotonic() - drawn > REDRAW:
            drawn = time.monotonic()
            yield _progress(event, timer)
    yield _result(project, data, tagger, timer, written)


def _progress(event: Progress, timer: Timer) -> str:
    """How many images are done, how fast, and how long it will take."""
    seconds_left = (event.total - event.done) * timer.seconds / event.done
    texts = [
        say("{done} of {total} images", done=event.done, total=event.total),
        timer.speed(),
        say("{time} left", time=span(seconds_left)),
    ]
    return f'<div style="max-width:{WIDTH}px">{facts(texts)}{bar(event.done / event.total)}</div>'


def _result(project: Project, data: DataConfig, tagger: taggers.Tagger, timer: Timer, written: int) -> str:
    """What was done, and some of the images with their new captions."""
    editor = CaptionEditor(project, data)
    texts = [
        say("{n} captions written", n=written),
        say("{n} kept (hand-written or locked)", n=_locked(editor)),
        say("{n} different tags in the dataset", n=len(tag_counts(editor.captions.values()))),
        say("{n} images scored by {tagger} ({device})", n=timer.images, tagger=tagger.name, device=tagger.runs_on),
        *([timer.speed()] if timer.images else []),
    ]
    # the newest change is that of the tagger
    names = [name for name in editor.history()[-1].new if name in editor.samples][:EXAMPLES] if written else []
    sources = Thumbnails(project).sources([editor.samples[name] for name in names])
    examples = "".join(map(_example, names, sources, (editor.captions[name] for name in names)))
    return f'<div style="max-width:{WIDTH}px">{facts(texts)}{examples}</div>'


def _example(name: str, source: str, caption: str) -> str:
    """An image beside its caption; below each other where the page is narrow."""
    image = f'<img src="{source}" style="max-width:160px;max-height:160px" alt="{html.escape(name)}">'
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:12px;margin:10px 0;align-items:flex-start">'
        f'<div style="flex:0 0 160px">{image}</div><div style="flex:1 1 240px;line-height:1.5;'
        f'overflow-wrap:anywhere">{aside(name)}{html.escape(caption)}</div></div>'
    )


def _locked(editor: CaptionEditor) -> int:
    return sum(map(editor.is_locked, editor.samples))
