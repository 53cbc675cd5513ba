"""Tagging in a cell: a form for who tags and what gets into captions, and the tagging itself with its progress."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, replace
from typing import Any

import ipywidgets

from lorakit import taggers
from lorakit.config import Config, ConfigError, check, from_dict
from lorakit.data import DataConfig
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.project import Project
from lorakit.sync import service
from lorakit.tags import tagging as captions
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.tagging import TaggingConfig, read_tagging, write_tagging
from widgets.data.thumbnails import Thumbnails
from widgets.fields import Row, help_html, is_basic
from widgets.i18n import say
from widgets.layouts import Layouts
from widgets.page import AMBER, RED, WIDTH, aside, bar, box, facts, span
from widgets.project.draft import Draft

REDRAW = 0.5  # s
EXAMPLES = 3  # images with their captions at the end
FOR_SENTENCES = ("which", "mix", "profile")  # of TaggingConfig; the rest is about tags


def tagging(project: Project) -> None:
    """Show the form in which it is chosen who tags and how, with a button that tags; `tag(project)` does so too."""
    from IPython.display import HTML, display

    try:
        display(TaggingForm(project).widget)
    except UserError as error:
        display(HTML(box(str(error), RED)))


def tag(project: Project, only_ask: bool = False) -> None:
    """Ask the chosen tagger about the images, and write captions, as the form says.

    only_ask    of all images, also of locked ones, and write none: the tag editor shows what the tagger thinks

    Interrupted, it goes on where it was when the cell is run again.
    """
    from IPython.display import HTML, display

    view = display(HTML(""), display_id=True)
    _run(project, only_ask, lambda text: view.update(HTML(text)))


def _run(project: Project, only_ask: bool, show: Callable[[str], None]) -> None:
    """Tag, and show what happens as HTML."""
    work = Work()
    try:
        for text in _steps(project, only_ask, work):
            show(text)
    except UserError as error:
        kept = aside(say("What {n} images were answered is kept.", n=work.done)) if work.done else ""
        show(box(str(error), RED) + kept)
    except KeyboardInterrupt:
        show(aside(say("Stopped after {n} images, which are kept; run it again to go on.", n=work.done)))
    service.start(project)


class Work:
    """How far the tagging is: images `done`, and the seconds that these took."""

    def __init__(self):
        self.done, self.begun = 0, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


def _steps(project: Project, only_ask: bool, work: Work) -> Iterator[str]:
    """Do it; yields what is to be shown now."""
    name, settings, config = read_tagging(project)
    data = Draft(project).data
    book = CaptionEditor(project, data)
    if not only_ask and not captions.images_to_tag(project, book, data.trigger, taggers.output(name), config.which):
        why = aside(say("What a person wrote is locked; the tag editor unlocks it.")) if _locked(book) else ""
        yield aside(say("No image wants a caption.")) + facts([say("{n} locked", n=_locked(book))]) + why
        return
    yield aside(say("reading the tagger…"))
    tagger = taggers.load(name, settings)
    yield aside(say("asking {tagger} ({place})…", tagger=tagger.name, place=tagger.runs_on))
    work.begun, drawn, written = time.monotonic(), 0.0, 0
    events = captions.score(project, data, tagger) if only_ask else captions.tag(project, data, tagger, config)
    for event in events:
        if event.what == "captions":
            written = event.done
            continue
        work.done = event.done
        if time.monotonic() - drawn > REDRAW:
            drawn = time.monotonic()
            yield _line(event, work.seconds)
    yield _ending(project, data, tagger, work, written)


def _line(event: Progress, seconds: float) -> str:
    """How far it is, how fast, and how long it will take."""
    left = (event.total - event.done) * seconds / event.done
    told = [
        say("{done} of {total} images", done=event.done, total=event.total),
        _pace(event.done, seconds),
        say("{time} left", time=span(left)),
    ]
    return f'<div style="max-width:{WIDTH}px">{facts(told)}{bar(event.done / event.total)}</div>'


def _pace(images: int, seconds: float) -> str:
    pace = images / max(seconds, 1e-3)
    return say("{n} a second", n=f"{pace:.0f}" if pace >= 10 else f"{pace:.2g}")


def _ending(project: Project, data: DataConfig, tagger: taggers.Tagger, work: Work, written: int) -> str:
    """What was done, and some of the images with their new captions."""
    book = CaptionEditor(project, data)
    told = [
        say("captions written: {n}", n=written),
        say("left alone, as a person wrote or locked them: {n}", n=_locked(book)),
        say("tags in the dataset: {n}", n=len(book.tag_counts())),
        say("{tagger} ({place}) read {n} images", tagger=tagger.name, place=tagger.runs_on, n=work.done),
        *([_pace(work.done, work.seconds)] if work.done else []),
    ]
    names = [name for name in book.history()[-1].new if name in book.samples][:EXAMPLES] if written else []
    sources = Thumbnails(project).sources([book.samples[name] for name in names])
    examples = "".join(map(_example, names, sources, (book.captions[name] for name in names)))
    return f'<div style="max-width:{WIDTH}px">{facts(told)}{examples}</div>'


def _example(name: str, source: str, caption: str) -> str:
    """An image beside its caption; below each other where the page is narrow."""
    image = f'<img src="{source}" style="max-width:160px;max-height:160px" alt="{html.escape(name)}">'
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:12px;margin:10px 0;align-items:flex-start">'
        f'<div style="flex:0 0 160px">{image}</div><div style="flex:1 1 240px;line-height:1.5;'
        f'overflow-wrap:anywhere">{aside(name)}{html.escape(caption)}</div></div>'
    )


def _locked(book: CaptionEditor) -> int:
    return sum(map(book.is_locked, book.samples))


# ---- the form --------------------------------------------------------------------------------------------------------


class TaggingForm:
    """The widget: `widget` is to be displayed; every change is in the project's tagging.yaml at once."""

    def __init__(self, project: Project):
        self.project, self._layouts = project, Layouts()
        wide = ipywidgets.Layout(width="auto")
        self.button = ipywidgets.Button(description=say("Tag the images"), button_style="primary", layout=wide)
        self.button.on_click(lambda _: self.run(only_ask=False))
        tooltip = say("asks about all images and writes nothing; the tag editor shows what the tagger thinks")
        self.ask = ipywidgets.Button(description=say("Only ask"), tooltip=tooltip, layout=wide)
        self.ask.on_click(lambda _: self.run(only_ask=True))
        self.told, self.trigger = ipywidgets.HTML(), ipywidgets.HTML()
        options = [(name, name) for name in taggers.names()]
        self.tagger = ipywidgets.Dropdown(options=options, layout=self._layouts.wide)
        self.tagger.observe(lambda change: self._choose(change["new"]), "value")
        self._about = self._layouts.text()
        self.widget = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%", max_width="1240px"))
        self._make()

    def run(self, only_ask: bool) -> None:
        """Tag the images; stopped, it goes on when the button is pressed again."""
        _run(self.project, only_ask, lambda text: setattr(self.told, "value", text))

    def set(self, path: str, value: Any) -> None:
        """Set one setting, such as "wd14.source" or "tagging.profile".

        Raises ConfigError, and keeps nothing, for what is wrong in itself.
        """
        owner, _, field = path.partition(".")
        if owner == "tagging":
            self.config = replace(self.config, **{field: check(TaggingConfig, field, value)})
        else:
            config_class = taggers.config_class(owner)
            settings = {**self.settings, field: check(config_class, field, value)}
            if wrong := _problems(config_class, settings).get(field):  # a key in a wrong place must not get to the disk
                raise ConfigError(wrong)
            self.settings = settings
        self._keep()

    def reset(self, path: str) -> None:
        """Let go of what was set by hand."""
        owner, _, field = path.partition(".")
        if owner == "tagging":
            self.config = replace(self.config, **{field: getattr(TaggingConfig(), field)})
        else:
            self.settings = {name: value for name, value in self.settings.items() if name != field}
        self._keep()

    def _keep(self) -> None:
        plain = {name: [*value] if isinstance(value, tuple) else value for name, value in self.settings.items()}
        write_tagging(self.project, self.name, plain, self.config)
        self._show()

    def _choose(self, name: str) -> None:
        if name == self.name:
            return
        try:
            write_tagging(self.project, name, read_tagging(self.project, name)[1], self.config)
            self._make()
        except ConfigError as error:
            self.told.value, self.tagger.value = box(str(error), RED), self.name

    def _make(self) -> None:
        """The rows of the chosen tagger and of what is made of its answers; those for experts are folded."""
        self.name, self.settings, self.config = read_tagging(self.project)
        self.tagger.value = self.name
        self.rows: dict[str, Row] = {}
        layouts = self._layouts
        line = ipywidgets.HBox([self.tagger, ipywidgets.Button(layout=layouts.no_button)], layout=layouts.line)
        plain, more = [layouts.as_row(layouts.text(say("Tagger")), ipywidgets.VBox([line]), self._about)], []
        for owner, config_class in ((self.name, taggers.config_class(self.name)), ("tagging", TaggingConfig)):
            for f in fields(config_class):
                if owner == "tagging" and taggers.output(self.name) == "sentence" and f.name not in FOR_SENTENCES:
                    continue
                path = f"{owner}.{f.name}"
                row = Row(layouts, path, (config_class, f.name), self._changed, lambda row: self.reset(row.path))
                self.rows[path] = row
                (plain if is_basic(config_class, f.name) else more).append(row.widget)
        folded = ipywidgets.Accordion(children=[ipywidgets.VBox(more)], selected_index=None)
        folded.set_title(0, say("more settings"))
        buttons = ipywidgets.HBox([self.button, self.ask], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget.children = [*plain, folded, self.trigger, buttons, self.told]
        self._show()

    def _changed(self, row: Row) -> None:
        try:
            self.set(row.path, row.control.read())
        except ConfigError as error:
            row.show(None, by_hand=True, trouble=str(error), keeps=True)

    def _show(self) -> None:
        self._about.value = help_html(html.escape(say(taggers.about(self.name))))
        none = say("No trigger is chosen, and none is written; the form of notebooks 1 and 4 asks for it.")
        trigger = Draft(self.project).data.trigger
        self.trigger.value = aside(say("The trigger comes first: {trigger}", trigger=trigger) if trigger else none)
        config_class = taggers.config_class(self.name)
        missing = _problems(config_class, self.settings)
        held = {self.name: {**usual(config_class), **self.settings}, "tagging": vars(self.config)}
        usuals = {self.name: usual(config_class), "tagging": vars(TaggingConfig())}
        for path, row in self.rows.items():
            owner, _, field = path.partition(".")
            value = held[owner][field]
            trouble = missing.get(field, "") if owner == self.name else ""
            row.show(value, by_hand=value != usuals[owner][field], trouble=trouble, colour=AMBER)
        self.button.disabled = self.ask.disabled = bool(missing)


def usual(config_class: type[Config]) -> dict[str, Any]:
    """What each setting is when nobody sets it; "" for those that must be set."""
    found = {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config_class)
    }
    return {name: "" if value is MISSING else value for name, value in found.items()}


def _problems(config_class: type[Config], settings: dict[str, Any]) -> dict[str, str]:
    """Setting -> what is wrong with it or missing; "" -> what is wrong but with no single one.

    What is missing counts as empty, or what does not go together would not be looked at before it is there.
    """
    try:
        from_dict(config_class, {**usual(config_class), **settings})
    except ConfigError as error:
        names = {f.name for f in fields(config_class)}
        lines = str(error).splitlines()
        words = [line.partition(" ")[0].rstrip(":.") for line in lines]
        return {word if word in names else "": line for word, line in zip(words, lines, strict=True)}
    return {}
