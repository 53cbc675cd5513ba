"""The tag editor: images and tags side by side, with undo; every change is in the caption files at once."""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets

from lorakit.errors import UserError
from lorakit.project import Project
from lorakit.sync import service
from lorakit.tags.edits import Change
from lorakit.tags.rules import Add, Remove
from widgets.clicks import Clicks
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, GREEN, RED, box, facts
from widgets.tags.choice import Choice
from widgets.tags.edit import Editor
from widgets.tags.history import Past, told
from widgets.tags.image import Image
from widgets.tags.sheet import Sheet
from widgets.tags.state import State
from widgets.tags.suspects import Doubts, Suggestions
from widgets.tags.table import TagTable


def tag_editor(project: Project) -> None:
    """Show the tag editor of a project's training images."""
    from IPython.display import HTML, display

    try:
        display(TagEditor(project).widget)
    except UserError as error:
        display(HTML(box(str(error), AMBER)))


class TagEditor:
    """The editor: `widget` is to be displayed. It holds nothing but what is looked at: captions, locks and history are
    the tag book's, on disk. Raises DataError without usable images, CaptionEditError while another holds the book."""

    def __init__(self, project: Project):
        self.state = State(project)
        self.clicks = Clicks(self._clicked)
        thumbnails = Thumbnails(project)
        self.head, self.told = ipywidgets.HTML(), ipywidgets.HTML()
        self.undo = _button(say("undo"), "undo", lambda: self.do(self.state.book.undo))
        self.redo = _button(say("redo"), "repeat", lambda: self.do(self.state.book.redo))
        self.again = _button(say("read again"), "refresh", self._read)
        self.table = TagTable(self.state, self.clicks)
        self.sheet = Sheet(self.state, self.clicks, thumbnails, self.draw)
        self.editor = Editor(self.state, self.draw, self.do)
        self.panels = {
            "image": Image(self.state, self.clicks, thumbnails, self.do),
            "doubts": Doubts(self.state, self.clicks, thumbnails),
            "suggestions": Suggestions(self.state, self.clicks),
            "history": Past(self.state),
        }
        self.panel = "image"
        self.panes = Choice(self._turn_to)
        self.panes.widget.layout.margin = "12px 0 0 0"
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        sides = ipywidgets.Layout(flex_flow="row wrap", width="100%", align_items="flex-start")
        right = ipywidgets.Layout(flex="3 1 340px", min_width="0")
        self.place = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%", padding="6px 0 0 0"))
        self.widget = ipywidgets.VBox(
            [
                self.head,
                ipywidgets.Box([self.undo, self.redo, self.again, self.told], layout=row),
                ipywidgets.Box(
                    [self.table.widget, ipywidgets.VBox([self.sheet.widget, self.editor.widget], layout=right)],
                    layout=sides,
                ),
                self.panes.widget,
                self.place,
                self.clicks.widget,
            ],
            layout=ipywidgets.Layout(width="100%", max_width="1240px"),
        )
        self.draw()

    def draw(self) -> None:
        """Show everything as it is now; what is the same as before is not sent again."""
        state, changes = self.state, self.state.book.history()
        head = [
            say("{n} images", n=len(state.names)),
            say("locked: {n}", n=sum(map(state.book.is_locked, state.names))),
        ]
        asked = len(state.opinion.scores) if state.opinion else 0
        tagger = say("{tagger} was asked about {n} of them", tagger=state.tagger, n=asked)
        head.append(tagger if asked else say("no tagger was asked yet"))
        self.head.value = facts(head)
        self.undo.disabled = not any(not change.undone for change in changes)
        self.redo.disabled = not (changes and changes[-1].undone)  # another change ends what can be made again
        self.table.draw()
        self.sheet.draw()
        self.editor.draw()
        self._draw_panel()

    def do(self, action: Callable[[], Change | None]) -> None:
        """Make a change of captions or locks, draw, and say what came of it."""
        said, colour = say("Nothing to change there."), AMBER
        try:
            if (change := action()) is not None:
                what, *more = told(change)
                said, colour = " · ".join([say("undone: {what}", what=what) if change.undone else what, *more]), GREEN
        except UserError as error:
            said, colour = str(error), RED
        self.state.derive()
        self.draw()
        self._say(said, colour)
        service.start(self.state.project)

    def _clicked(self, message: list[str]) -> None:
        """A click on HTML: what is to be done, then the image, or the tag and images. A click on an image that is
        gone, from a page that was drawn before, does nothing."""
        what, *rest = message
        if not self.state.numbers.keys() >= set(rest[what in ("tag", "take", "give", "absorb") :]):
            return
        {
            "tag": self._choose,
            "image": self._toggle,
            "look": self._look,
            "take": self._take,
            "give": self._give,
            "absorb": self._absorb,
        }[what](*rest)

    def _choose(self, tag: str) -> None:
        self.state.choose(tag)
        self.editor.tag.value = self.state.tag or self.editor.tag.value
        self.draw()

    def _toggle(self, name: str) -> None:
        self.state.toggle(name)
        self.draw()

    def _look(self, name: str) -> None:
        self.state.focus, self.panel = name, "image"
        self.draw()

    def _take(self, tag: str, *names: str) -> None:
        rule = Remove(tag, self.state.config.trigger)
        self.do(lambda: self.state.edit(say("removed {tags}", tags=tag), [rule], names))

    def _give(self, tag: str, *names: str) -> None:
        rule = Add(tag, trigger=self.state.config.trigger)
        self.do(lambda: self.state.edit(say("added {tags}", tags=tag), [rule], names))

    def _absorb(self, tag: str) -> None:
        rule = Remove(tag, self.state.config.trigger)
        self.do(lambda: self.state.edit(say("left {tags} to the trigger", tags=tag), [rule], self.state.names))

    def _turn_to(self, panel: str) -> None:
        self.panel = panel
        self._draw_panel()

    def _draw_panel(self) -> None:
        words = {
            "image": say("this image"),
            "doubts": f"{say('suspicious tags')} {len(self.state.hints)}",
            "suggestions": say("suggestions"),
            "history": say("history"),
        }
        self.panes.draw([(word, name) for name, word in words.items()], self.panel)
        panel = self.panels[self.panel]
        panel.draw()
        if self.place.children != (panel.widget,):
            self.place.children = (panel.widget,)

    def _read(self) -> None:
        try:
            self.state.read()
        except UserError as error:
            self._say(str(error), RED)
            return
        self.draw()
        self._say(say("Read again."), GREEN)

    def _say(self, text: str, colour: str) -> None:
        self.told.value = f'<div style="color:{colour};line-height:1.5;padding:0 8px">{html.escape(text)}</div>'


def _button(words: str, icon: str, pressed: Callable[[], None]) -> ipywidgets.Button:
    button = ipywidgets.Button(description=words, icon=icon, layout=ipywidgets.Layout(width="auto"))
    button.on_click(lambda _: pressed())
    return button
