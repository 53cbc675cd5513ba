"""The tag editor: images and tags side by side, with undo; every change is written to the caption files at once."""

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
from widgets.plain import show
from widgets.project.labels import labelled
from widgets.tags.bulk_edit import BulkEdit
from widgets.tags.choice import Choice
from widgets.tags.history import HistoryPanel, summary
from widgets.tags.image_grid import ImageGrid
from widgets.tags.image_panel import ImagePanel
from widgets.tags.state import EditorState
from widgets.tags.suggestions import SuggestionsPanel
from widgets.tags.suspects import SuspectsPanel
from widgets.tags.tag_table import TagTable


def tag_editor(project: Project) -> None:
    """Show the tag editor of a project's training images."""
    from IPython.display import HTML, display

    try:
        show(TagEditor(project).widget)
    except UserError as error:
        display(HTML(box(labelled(str(error)), AMBER)))


class TagEditor:
    """The editor; display its `widget`. Captions, locks and history are on disk, so any kernel can continue.

    panels   the parts below the images, by name: image, suspects, suggestions, history; `panel` is the shown one

    Raises DataError without usable images, CaptionEditError while another process is busy with the captions.
    """

    def __init__(self, project: Project):
        self.state = EditorState(project)
        # One hidden field for all parts: a notebook page has many, and each click names its action.
        self.clicks = Clicks(self._clicked)
        thumbnails = Thumbnails(project)
        self.head, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.undo = _button(say("Undo"), "undo", lambda: self.do(self.state.editor.undo))
        self.redo = _button(say("Redo"), "repeat", lambda: self.do(self.state.editor.redo))
        self.reload = _button(say("Reload"), "refresh", self._reload)
        self.table = TagTable(self.state, self.clicks)
        self.grid = ImageGrid(self.state, self.clicks, thumbnails, self.draw)
        self.bulk_edit = BulkEdit(self.state, self.draw, self.do)
        self.panels = {
            "image": ImagePanel(self.state, self.clicks, thumbnails, self.do),
            "suspects": SuspectsPanel(self.state, self.clicks, thumbnails),
            "suggestions": SuggestionsPanel(self.state, self.clicks),
            "history": HistoryPanel(self.state),
        }
        self.panel = "image"
        self.panel_choice = Choice(self.show_panel)
        self.panel_choice.widget.layout.margin = "12px 0 0 0"
        self._panel_place = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%", padding="6px 0 0 0"))
        self.widget = self._laid_out()
        self.draw()

    def _laid_out(self) -> ipywidgets.VBox:
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        columns = ipywidgets.Layout(flex_flow="row wrap", width="100%", align_items="flex-start")
        right = ipywidgets.Layout(flex="3 1 340px", min_width="0")
        images = ipywidgets.VBox([self.grid.widget, self.bulk_edit.widget], layout=right)
        return ipywidgets.VBox(
            [
                self.head,
                ipywidgets.Box([self.undo, self.redo, self.reload, self.status], layout=row),
                ipywidgets.Box([self.table.widget, images], layout=columns),
                self.panel_choice.widget,
                self._panel_place,
                self.clicks.widget,
            ],
            layout=ipywidgets.Layout(width="100%", max_width="1240px"),
        )

    def draw(self) -> None:
        """Show the current state; ipywidgets sends only what differs from before."""
        state, changes = self.state, self.state.editor.history()
        scored = len(state.scores.scores) if state.scores else 0
        tagger = say('{n} images scored by tagger "{tagger}"', n=scored, tagger=state.tagger)
        self.head.value = facts(
            [
                say("{n} images", n=len(state.names)),
                say("{n} locked", n=sum(map(state.editor.is_locked, state.names))),
                tagger if scored else say("no tagger has run yet"),
            ]
        )
        self.undo.disabled = all(change.undone for change in changes)
        # only the newest changes can be redone: a change made after an undo ends that
        self.redo.disabled = not (changes and changes[-1].undone)
        self.table.draw()
        self.grid.draw()
        self.bulk_edit.draw()
        self._draw_panel()

    def do(self, action: Callable[[], Change | None]) -> None:
        """Make a change of captions or locks, redraw, and show what happened or why it failed."""
        text, colour = say("Nothing to change."), AMBER
        try:
            if (change := action()) is not None:
                what, *more = summary(change)
                text, colour = " · ".join([say("undone: {what}", what=what) if change.undone else what, *more]), GREEN
        except UserError as error:
            text, colour = labelled(str(error)), RED
        # after a failure, too: some captions may have been written
        self.state.derive()
        self.draw()
        self._show_status(text, colour)
        # the changed captions go to the project's remote copy, if it has one
        service.start(self.state.project)

    def show_panel(self, name: str) -> None:
        """Show one of `panels` below the images."""
        self.panel = name
        self._draw_panel()

    def _clicked(self, message: list[str]) -> None:
        """Handle a click on HTML: [action, image], or [action, tag, images…] for actions on tags."""
        action, *arguments = message
        # A tag comes first in those actions, images after it.
        names = arguments[action in ("tag", "remove", "add", "remove from all") :]
        # a page that was drawn before may show images that are gone by now
        if not self.state.numbers.keys() >= set(names):
            return
        {
            "tag": self._choose_tag,
            "image": self._toggle,
            "focus": self._focus,
            "remove": self._remove,
            "add": self._add,
            "remove from all": self._remove_from_all,
        }[action](*arguments)

    def _choose_tag(self, tag: str) -> None:
        self.state.choose_tag(tag)
        # A click on a tag also names it in the field, ready to be renamed or removed; a click that deselects it leaves
        # the field.
        self.bulk_edit.tag.value = self.state.tag or self.bulk_edit.tag.value
        self.draw()

    def _toggle(self, name: str) -> None:
        self.state.toggle(name)
        self.draw()

    def _focus(self, name: str) -> None:
        self.state.focus, self.panel = name, "image"
        self.draw()

    def _remove(self, tag: str, *names: str) -> None:
        rule = Remove(tag, self.state.config.trigger)
        self.do(lambda: self.state.edit(say("removed {tags}", tags=tag), [rule], names))

    def _add(self, tag: str, *names: str) -> None:
        rule = Add(tag, trigger=self.state.config.trigger)
        self.do(lambda: self.state.edit(say("added {tags}", tags=tag), [rule], names))

    def _remove_from_all(self, tag: str) -> None:
        rule = Remove(tag, self.state.config.trigger)
        what = say("removed {tags} (left to the trigger word)", tags=tag)
        self.do(lambda: self.state.edit(what, [rule], self.state.names))

    def _draw_panel(self) -> None:
        labels = {
            "image": say("Image"),
            "suspects": f"{say('Suspicious tags')} {len(self.state.suspects)}",
            "suggestions": say("Advice"),
            "history": say("History"),
        }
        self.panel_choice.draw([(label, name) for name, label in labels.items()], self.panel)
        panel = self.panels[self.panel]
        panel.draw()
        # An equal panel is not set again: the page would build it anew.
        if self._panel_place.children != (panel.widget,):
            self._panel_place.children = (panel.widget,)

    def _reload(self) -> None:
        try:
            self.state.reload()
        except UserError as error:
            self._show_status(labelled(str(error)), RED)
            return
        self.draw()
        self._show_status(say("Reloaded."), GREEN)

    def _show_status(self, text: str, colour: str) -> None:
        self.status.value = f'<div style="color:{colour};line-height:1.5;padding:0 8px">{html.escape(text)}</div>'


def _button(label: str, icon: str, pressed: Callable[[], None]) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, icon=icon, layout=ipywidgets.Layout(width="auto"))
    button.on_click(lambda _: pressed())
    return button
