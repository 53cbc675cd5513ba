"""A page of thumbnails, marked with what is selected, what is locked, and which images have the chosen tag."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import ipywidgets

from widgets.clicks import Clicks, sends
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, BLUE, GREEN, aside
from widgets.tags.choice import Choice
from widgets.tags.state import PAGE, EditorState

SIDE = 104  # px of a thumbnail's cell
BADGE = (
    "position:absolute;font-size:11px;line-height:1.5;border-radius:3px;padding:0 4px;color:#fff;pointer-events:none"
)
DARK = "background-color:rgba(75,85,99,0.85)"
SELECTED = "background-color:rgba(37,99,235,0.14)"


class ImageGrid:
    """The widget; a click on an image sends `["image", its name]`.

    Marks are CSS rules in a widget of their own, so that selecting an image does not send the thumbnails again.
    """

    def __init__(self, state: EditorState, clicks: Clicks, thumbnails: Thumbnails, changed: Callable[[], None]):
        self._state, self._clicks, self._thumbnails, self._changed = state, clicks, thumbnails, changed
        self.show = Choice(self._show_images)
        self.marks = ipywidgets.HTML(layout=ipywidgets.Layout(height="0", margin="0"))
        self.images = ipywidgets.HTML()
        self.previous = _button("‹", lambda _: self._turn(-1))
        self.next = _button("›", lambda _: self._turn(1))
        self.range = ipywidgets.HTML()
        self.select_all = _button(say("Select all shown"), lambda _: self._select(set(state.shown()) | state.selected))
        self.deselect = _button(say("Deselect all"), lambda _: self._select(set()))
        # where a notebook strips scripts out of HTML, clicks do not arrive: numbers select there
        self.numbers = ipywidgets.Text(
            placeholder=say("Numbers: 1, 3, 5-8"), continuous_update=False, layout=ipywidgets.Layout(width="150px")
        )
        self.numbers.observe(self._select_numbers, "value")
        tools = [self.previous, self.range, self.next, self.select_all, self.deselect, self.numbers]
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        self.widget = ipywidgets.VBox(
            [self.show.widget, self.marks, self.images, ipywidgets.Box(tools, layout=row)],
            layout=ipywidgets.Layout(width="100%"),
        )

    def draw(self) -> None:
        """Show the current page and its marks."""
        state, shown = self._state, self._state.shown()
        # Rounded up; an empty selection has one empty page.
        pages = max(1, -(-len(shown) // PAGE))
        # The shown images may have become fewer by an edit.
        state.page = min(state.page, pages - 1)
        begin = state.page * PAGE
        names, having = shown[begin : begin + PAGE], state.having(state.tag)
        self._draw_choice()
        self.images.value = self._page(names) if names else aside(say("No images here."))
        self.marks.value = f"<style>{''.join(self._mark(name, name in having) for name in names)}</style>"
        self.range.value = say("{a}–{b} of {n}", a=begin + bool(names), b=begin + len(names), n=len(shown))
        self.previous.disabled, self.next.disabled = state.page == 0, state.page == pages - 1
        # the thumbnails of the next page are made in the background
        samples = state.editor.samples
        self._thumbnails.prepare(samples[name] for name in shown[begin + PAGE : begin + 2 * PAGE])

    def _draw_choice(self) -> None:
        state = self._state
        labels = {
            "all": say("All"),
            "with": say("With this tag"),
            "without": say("Without it"),
            "selected": say("Selected"),
            "suspicious": say("Suspicious"),
            "locked": say("Locked"),
        }
        if not state.tag:
            del labels["with"], labels["without"]
        self.show.draw([(f"{label} {len(state.shown(show))}", show) for show, label in labels.items()], state.show)

    def _page(self, names: list[str]) -> str:
        sources = self._thumbnails.sources(self._state.editor.samples[name] for name in names)
        cells = "".join(map(self._cell, names, sources))
        # As many columns as fit, three at least on a phone.
        grid = f"display:grid;gap:8px;padding:4px;grid-template-columns:repeat(auto-fill,minmax(min({SIDE}px,28%),1fr))"
        return f'<div class="{self._clicks.name}-sheet" {self._clicks.attributes()} style="{grid}">{cells}</div>'

    def _cell(self, name: str, source: str) -> str:
        number, title = self._state.numbers[name], html.escape(name)
        image = f'<img src="{source}" alt="" style="max-width:100%;max-height:100%;border-radius:4px;margin:0">'
        content = image if source else aside(say("unreadable"))
        return (
            # Marks find their image by its number: a file name could hold characters that CSS does not take.
            f'<div {sends(["image", name])} data-number="{number}" title="{title}" style="position:relative;'
            f'cursor:pointer;border-radius:6px;padding:3px;min-width:0"><div style="height:{SIDE}px;display:flex;'
            f'align-items:center;justify-content:center">{content}</div><div style="font-size:11px;line-height:1.4;'
            f'opacity:0.75;white-space:nowrap;overflow:hidden;text-overflow:ellipsis"><b>{number}</b> '
            f"{html.escape(name.rpartition('/')[2])}</div></div>"
        )

    def _mark(self, name: str, has_tag: bool) -> str:
        """The CSS rules of one image: its frame, its lock, and a badge for the chosen tag."""
        state = self._state
        cell = f'.{self._clicks.name}-sheet [data-number="{state.numbers[name]}"]'
        rules = []
        if name in state.selected:
            rules.append(f"{cell}{{outline:3px solid {BLUE};{SELECTED}}}")
        elif name == state.focus:
            rules.append(f"{cell}{{outline:1px dashed {BLUE}}}")
        if state.editor.is_locked(name):
            rules.append(f'{cell}::before{{content:"{say("locked")}";{BADGE};top:{SIDE - 18}px;right:6px;{DARK}}}')
        if state.tag:
            score = state.score(name, state.tag)
            is_suspicious = any(suspect.tag == state.tag for suspect in state.suspects_of.get(name, ()))
            colour = f"background-color:{AMBER if is_suspicious else GREEN}" if is_suspicious or has_tag else DARK
            text = f"{'✓' if has_tag else '–'}{'' if score is None else f' {score:.2f}'}"
            rules.append(f'{cell}::after{{content:"{text}";{BADGE};top:6px;left:6px;{colour}}}')
        return "".join(rules)

    def _show_images(self, show: str) -> None:
        self._state.show_images(show)
        self._changed()

    def _turn(self, pages: int) -> None:
        self._state.page += pages
        self._changed()

    def _select(self, names: set[str]) -> None:
        self._state.selected = names
        self._changed()

    def _select_numbers(self, change: dict) -> None:
        names = [self._state.names[number - 1] for number in numbers(change["new"], len(self._state.names))]
        if names:
            self._state.focus = names[-1]
            self._select(set(names))


def numbers(text: str, last: int) -> list[int]:
    """The numbers that "1, 3, 5-8" lists, from 1 to `last`, in the written order; anything else is skipped."""
    # A dict keeps the order and drops doubles.
    listed: dict[int, None] = {}
    # nine digits at most: a pasted text of thousands of digits is no number of an image
    for first, _, end in re.findall(r"(\d{1,9})(\s*[-–]\s*(\d{1,9}))?", text):
        listed |= dict.fromkeys(range(max(1, int(first)), min(last, int(end or first)) + 1))
    return list(listed)


def _button(label: str, pressed: Callable) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, layout=ipywidgets.Layout(width="auto"))
    button.on_click(pressed)
    return button
