"""Where tags are typed: add, remove, rename and merge, on the selected images or on all, and the lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets

from lorakit.data.captions import tags_of
from lorakit.tags.edits import Change
from lorakit.tags.rules import Add, Merge, Remove, Rename, Rule
from widgets.i18n import say
from widgets.page import aside
from widgets.tags.choice import Choice
from widgets.tags.state import State

NAMED = 6  # tags that a pattern names, at most, in the line below the fields


class Editor:
    """The widget; what a button does is given to `do`, which makes the change and draws it."""

    def __init__(self, state: State, changed: Callable[[], None], do: Callable[[Callable[[], Change | None]], None]):
        self._state, self._changed = state, changed
        self.scope = "all"
        self._were_selected = False
        self.where = Choice(self._choose)
        self.tag = _field(say("tag, tags with commas, or * red *"), self._typed)
        self.into = _field(say("new name"), self._typed)
        self.who = ipywidgets.Button(description=say("who has it"), layout=ipywidgets.Layout(width="auto"))
        self.who.on_click(lambda _: self._look())
        self.told = ipywidgets.HTML()
        rows = [
            [
                self.where.widget,
                _button(say("lock"), do, self.lock, "lock"),
                _button(say("unlock"), do, self.unlock, "unlock"),
            ],
            [self.tag, _button(say("add"), do, self.add), _button(say("remove"), do, self.remove), self.who],
            [self.into, _button(say("rename or merge into this"), do, self.rename)],
        ]
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        self.widget = ipywidgets.VBox(
            [*(ipywidgets.Box(fields, layout=row) for fields in rows), self.told],
            layout=ipywidgets.Layout(width="100%", padding="6px 0 0 0"),
        )

    def draw(self) -> None:
        """Count anew what the buttons would change. Who begins to select means the selection, who ends it all."""
        state, selected = self._state, len(self._state.selected)
        if bool(selected) != self._were_selected:
            self.scope, self._were_selected = ("selected" if selected else "all"), bool(selected)
        options = [
            (say("selected images: {n}", n=selected), "selected"),
            (say("all images: {n}", n=len(state.names)), "all"),
        ]
        self.where.draw(options, self.scope)
        self.told.value = self._preview()

    def names(self) -> list[str]:
        """The images that are meant."""
        state = self._state
        return [name for name in state.names if self.scope == "all" or name in state.selected]

    def add(self) -> Change | None:
        """Put the tags where they are missing."""
        rules = [Add(tag, trigger=self._trigger) for tag in tags_of(self.tag.value) if "*" not in tag]
        return self._edit(say("added {tags}", tags=self._typed_tags()), rules)

    def remove(self) -> Change | None:
        """Take the tags, or what a pattern names, out."""
        rules = [Remove(tag, self._trigger) for tag in tags_of(self.tag.value)]
        return self._edit(say("removed {tags}", tags=self._typed_tags()), rules)

    def rename(self) -> Change | None:
        """Write the new name for one tag, or once for several."""
        old, new = tags_of(self.tag.value), self.into.value.strip().strip(",")
        if not old or not new:
            return None
        rule = Rename(old[0], new, self._trigger) if len(old) == 1 else Merge(tuple(old), new, self._trigger)
        return self._edit(say("renamed {tags} to {new}", tags=self._typed_tags(), new=new), [rule])

    def lock(self) -> Change | None:
        """Keep taggers from the captions that are meant."""
        return self._state.book.lock(self.names())

    def unlock(self) -> Change | None:
        """Let taggers write them again."""
        return self._state.book.unlock(self.names())

    @property
    def _trigger(self) -> str:
        return self._state.config.trigger

    def _typed_tags(self) -> str:
        return ", ".join(tags_of(self.tag.value))

    def _edit(self, what: str, rules: Sequence[Rule]) -> Change | None:
        return self._state.edit(what, rules, self.names())

    def _preview(self) -> str:
        """Which tags of the images that are meant the field names, and in how many of them they are."""
        state, meant = self._state, set(self.names())
        if not tags_of(self.tag.value):
            return aside(say("Several tags are parted by commas; * stands for any text, as in * footwear."))
        named = [tag for tag in state.named(self.tag.value) if state.holders[tag] & meant]
        if not named:
            return aside(say("None of these {n} images has that.", n=len(meant)))
        having = meant & state.having(self.tag.value)
        tags = ", ".join(named[:NAMED]) + (" …" if len(named) > NAMED else "")
        return aside(say("In {k} of these {n} images: {tags}", k=len(having), n=len(meant), tags=tags))

    def _typed(self, change: dict) -> None:
        change["owner"].options = self._state.offered(change["new"])
        self.told.value = self._preview()

    def _look(self) -> None:
        if self._state.having(self.tag.value):
            self._state.choose(self.tag.value)
            self._changed()

    def _choose(self, scope: str) -> None:
        self.scope = scope
        self._changed()


def _field(placeholder: str, typed: Callable[[dict], None]) -> ipywidgets.Combobox:
    """A text field that offers tags while one is typed."""
    layout = ipywidgets.Layout(flex="1 1 220px", max_width="360px")
    field = ipywidgets.Combobox(placeholder=placeholder, layout=layout)
    field.observe(typed, "value")
    return field


def _button(words: str, do: Callable, action: Callable[[], Change | None], icon: str = "") -> ipywidgets.Button:
    button = ipywidgets.Button(description=words, icon=icon, layout=ipywidgets.Layout(width="auto"))
    button.on_click(lambda _: do(action))
    return button
