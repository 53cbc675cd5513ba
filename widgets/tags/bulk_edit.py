"""Edits of many captions: add, remove, rename and merge tags in the selected images or in all, and lock them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets

from lorakit.data.caption_parts import tags_of
from lorakit.tags.edits import Change
from lorakit.tags.rules import Add, Merge, Remove, Rename, Rule
from widgets.i18n import say
from widgets.page import aside
from widgets.tags.choice import Choice
from widgets.tags.state import EditorState

SHOWN_TAGS = 6  # tags that a pattern names, at most, in the line below the fields


class BulkEdit:
    """The widget; a button passes its action to `do`, which makes the change and redraws.

    scope   "selected" or "all": the images that the buttons change
    """

    def __init__(
        self, state: EditorState, changed: Callable[[], None], do: Callable[[Callable[[], Change | None]], None]
    ):
        self._state, self._changed = state, changed
        self.scope = "all"
        # Whether images were selected at the last drawing: only a change of that moves the scope.
        self._had_selection = False
        self.scope_choice = Choice(self._set_scope)
        self.tag = _field(say("Tag, several with commas, or * red *"), self._typed)
        self.new_name = _field(say("New name"), self._typed)
        self.find = ipywidgets.Button(
            description=say("Show images with this tag"), layout=ipywidgets.Layout(width="auto")
        )
        self.find.on_click(lambda _: self._show_images())
        self.preview = ipywidgets.HTML()
        rows = [
            [
                self.scope_choice.widget,
                _button(say("Lock"), do, self.lock, "lock"),
                _button(say("Unlock"), do, self.unlock, "unlock"),
            ],
            [self.tag, _button(say("Add"), do, self.add), _button(say("Remove"), do, self.remove), self.find],
            [self.new_name, _button(say("Rename / merge"), do, self.rename)],
        ]
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        self.widget = ipywidgets.VBox(
            [*(ipywidgets.Box(fields, layout=row) for fields in rows), self.preview],
            layout=ipywidgets.Layout(width="100%", padding="6px 0 0 0"),
        )

    def draw(self) -> None:
        """Update the counts. The first selected image sets the scope to the selection, deselecting all sets it back."""
        state, selected = self._state, len(self._state.selected)
        if bool(selected) != self._had_selection:
            self.scope, self._had_selection = ("selected" if selected else "all"), bool(selected)
        options = [
            (say("Selected images: {n}", n=selected), "selected"),
            (say("All images: {n}", n=len(state.names)), "all"),
        ]
        self.scope_choice.draw(options, self.scope)
        self.preview.value = self._preview_html()

    def names(self) -> list[str]:
        """The images in the scope."""
        state = self._state
        return [name for name in state.names if self.scope == "all" or name in state.selected]

    def add(self) -> Change | None:
        """Add the typed tags where they are missing."""
        # a pattern names no tag that could be added
        rules = [Add(tag, trigger=self._trigger) for tag in tags_of(self.tag.value) if "*" not in tag]
        return self._edit(say("added {tags}", tags=self._typed_tags()), rules)

    def remove(self) -> Change | None:
        """Remove the typed tags, or all that match a pattern."""
        rules = [Remove(tag, self._trigger) for tag in tags_of(self.tag.value)]
        return self._edit(say("removed {tags}", tags=self._typed_tags()), rules)

    def rename(self) -> Change | None:
        """Rename the typed tag, or merge several into the new name."""
        # A comma typed after the new name would make it two tags.
        old, new = tags_of(self.tag.value), self.new_name.value.strip().strip(",")
        if not old or not new:
            return None
        rule = Rename(old[0], new, self._trigger) if len(old) == 1 else Merge(tuple(old), new, self._trigger)
        return self._edit(say("renamed {tags} to {new}", tags=self._typed_tags(), new=new), [rule])

    def lock(self) -> Change | None:
        """Lock the captions in the scope against taggers."""
        return self._state.editor.lock(self.names())

    def unlock(self) -> Change | None:
        """Let taggers write them again."""
        return self._state.editor.unlock(self.names())

    @property
    def _trigger(self) -> str:
        return self._state.config.trigger

    def _typed_tags(self) -> str:
        return ", ".join(tags_of(self.tag.value))

    def _edit(self, what: str, rules: Sequence[Rule]) -> Change | None:
        return self._state.edit(what, rules, self.names())

    def _preview_html(self) -> str:
        """The tags that the field names, and how many images of the scope have them."""
        state, scope = self._state, set(self.names())
        if not tags_of(self.tag.value):
            return aside(say("Separate several tags with commas; * stands for any text, as in * footwear."))
        matching = [tag for tag in state.matching(self.tag.value) if state.holders[tag] & scope]
        if not matching:
            return aside(say("None of these {n} images has this tag.", n=len(scope)))
        having = scope & state.having(self.tag.value)
        tags = ", ".join(matching[:SHOWN_TAGS]) + (" …" if len(matching) > SHOWN_TAGS else "")
        return aside(say("In {k} of these {n} images: {tags}", k=len(having), n=len(scope), tags=tags))

    def _typed(self, change: dict) -> None:
        # A Combobox shows at most its own options: new ones at each typed letter.
        change["owner"].options = self._state.completions(change["new"])
        self.preview.value = self._preview_html()

    def _show_images(self) -> None:
        if self._state.having(self.tag.value):
            self._state.choose_tag(self.tag.value)
            self._changed()

    def _set_scope(self, scope: str) -> None:
        self.scope = scope
        self._changed()


def _field(placeholder: str, typed: Callable[[dict], None]) -> ipywidgets.Combobox:
    """A text field that offers tags while one is typed."""
    layout = ipywidgets.Layout(flex="1 1 220px", max_width="360px")
    field = ipywidgets.Combobox(placeholder=placeholder, layout=layout)
    field.observe(typed, "value")
    return field


def _button(label: str, do: Callable, action: Callable[[], Change | None], icon: str = "") -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, icon=icon, layout=ipywidgets.Layout(width="auto"))
    button.on_click(lambda _: do(action))
    return button
