"""A page of images as thumbnails: what is selected, locked or has the chosen tag is seen on them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import ipywidgets

from widgets.clicks import Clicks, said
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, BLUE, GREEN, aside
from widgets.tags.choice import Choice
from widgets.tags.state import PAGE, State

SIDE = 104  # px of a thumbnail's place
BADGE = (
    "position:absolute;font-size:11px;line-height:1.5;border-radius:3px;padding:0 4px;color:#fff;pointer-events:none"
)
GREY = "background-color:rgba(75,85,99,0.85)"


class Sheet:
    """The widget; a click on an image tells `["image", its name]`. Marks are a style sheet of their own, so that the
    images need not be sent again when one is selected."""

    def __init__(self, state: State, clicks: Clicks, thumbnails: Thumbnails, changed: Callable[[], None]):
        self._state, self._clicks, self._thumbnails, self._changed = state, clicks, thumbnails, changed
        self.show = Choice(self._look)
        self.marks = ipywidgets.HTML(layout=ipywidgets.Layout(height="0", margin="0"))
        self.images = ipywidgets.HTML()
        self.back = _button("‹", lambda _: self._turn(-1))
        self.on = _button("›", lambda _: self._turn(1))
        self.where = ipywidgets.HTML()
        self.every = _button(say("select these"), lambda _: self._select(set(state.shown()) | state.selected))
        self.none = _button(say("select none"), lambda _: self._select(set()))
        self.numbers = ipywidgets.Text(
            placeholder=say("numbers: 1, 3, 5-8"), continuous_update=False, layout=ipywidgets.Layout(width="150px")
        )
        self.numbers.observe(self._numbered, "value")
        tools = [self.back, self.where, self.on, self.every, self.none, self.numbers]
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        self.widget = ipywidgets.VBox(
            [self.show.widget, self.marks, self.images, ipywidgets.Box(tools, layout=row)],
            layout=ipywidgets.Layout(width="100%"),
        )

    def draw(self) -> None:
        """Show the images and their marks as they are now."""
        state, shown = self._state, self._state.shown()
        pages = max(1, -(-len(shown) // PAGE))
        state.page = min(state.page, pages - 1)
        begin = state.page * PAGE
        names, have = shown[begin : begin + PAGE], state.having(state.tag)
        self._draw_choice()
        self.images.value = self._page(names) if names else aside(say("No image here."))
        self.marks.value = f"<style>{''.join(self._mark(name, have) for name in names)}</style>"
        self.where.value = say("{a}–{b} of {n}", a=begin + bool(names), b=begin + len(names), n=len(shown))
        self.back.disabled, self.on.disabled = state.page == 0, state.page == pages - 1
        self._thumbnails.prepare(state.book.samples[name] for name in shown[begin + PAGE : begin + 2 * PAGE])

    def _draw_choice(self) -> None:
        state = self._state
        words = {
            "all": say("all"),
            "with": say("has the tag"),
            "without": say("has it not"),
            "selected": say("selected"),
            "suspicious": say("suspicious"),
            "locked": say("locked"),
        }
        if not state.tag:
            del words["with"], words["without"]
        self.show.draw([(f"{word} {len(state.shown(show))}", show) for show, word in words.items()], state.show)

    def _page(self, names: list[str]) -> str:
        sources = self._thumbnails.sources(self._state.book.samples[name] for name in names)
        places = "".join(map(self._place, names, sources))
        grid = f"display:grid;gap:8px;padding:4px;grid-template-columns:repeat(auto-fill,minmax(min({SIDE}px,28%),1fr))"
        return f'<div class="{self._clicks.name}-sheet" {self._clicks.attributes()} style="{grid}">{places}</div>'

    def _place(self, name: str, source: str) -> str:
        number, spelled = self._state.numbers[name], html.escape(name)
        image = f'<img src="{source}" alt="" style="max-width:100%;max-height:100%;border-radius:4px;margin:0">'
        shown = image if source else aside(say("cannot be read"))
        return (
            f'<div {said(["image", name])} data-number="{number}" title="{spelled}" style="position:relative;'
            f'cursor:pointer;border-radius:6px;padding:3px;min-width:0"><div style="height:{SIDE}px;display:flex;'
            f'align-items:center;justify-content:center">{shown}</div><div style="font-size:11px;line-height:1.4;'
            f'opacity:0.75;white-space:nowrap;overflow:hidden;text-overflow:ellipsis"><b>{number}</b> '
            f"{html.escape(name.rpartition('/')[2])}</div></div>"
        )

    def _mark(self, name: str, have: set[str]) -> str:
        """The style rules of one image: frame, lock, and whether it is among those that have the chosen tag."""
        state = self._state
        place = f'.{self._clicks.name}-sheet [data-number="{state.numbers[name]}"]'
        rules = []
        if name in state.selected:
            rules.append(f"{place}{{outline:3px solid {BLUE};background-color:rgba(37,99,235,0.14)}}")
        elif name == state.focus:
            rules.append(f"{place}{{outline:1px dashed {BLUE}}}")
        if state.book.is_locked(name):
            rules.append(f'{place}::before{{content:"{say("locked")}";{BADGE};top:{SIDE - 18}px;right:6px;{GREY}}}')
        if state.tag:
            has = name in have
            score = state.score(name, state.tag)
            doubted = any(hint.tag == state.tag for hint in state.doubted.get(name, ()))
            colour = f"background-color:{AMBER if doubted else GREEN}" if doubted or has else GREY
            told = f"{'✓' if has else '–'}{'' if score is None else f' {score:.2f}'}"
            rules.append(f'{place}::after{{content:"{told}";{BADGE};top:6px;left:6px;{colour}}}')
        return "".join(rules)

    def _look(self, show: str) -> None:
        self._state.look(show)
        self._changed()

    def _turn(self, pages: int) -> None:
        self._state.page += pages
        self._changed()

    def _select(self, names: set[str]) -> None:
        self._state.selected = names
        self._changed()

    def _numbered(self, change: dict) -> None:
        names = [self._state.names[number - 1] for number in numbers(change["new"], len(self._state.names))]
        if names:
            self._state.focus = names[-1]
            self._select(set(names))


def numbers(text: str, last: int) -> list[int]:
    """What "1, 3, 5-8" counts, from 1 to `last`, in the order it is written; anything else in it is passed over."""
    found: dict[int, None] = {}
    for first, _, end in re.findall(r"(\d{1,9})(\s*[-–]\s*(\d{1,9}))?", text):
        found |= dict.fromkeys(range(max(1, int(first)), min(last, int(end or first)) + 1))
    return list(found)


def _button(words: str, pressed: Callable) -> ipywidgets.Button:
    button = ipywidgets.Button(description=words, layout=ipywidgets.Layout(width="auto"))
    button.on_click(pressed)
    return button
