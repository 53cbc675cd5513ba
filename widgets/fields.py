"""One setting in a form: its label and unit, what it is set with, its help, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import html
import math
import typing
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets
import yaml

from lorakit.config import Config, Slider, choices_of, helps_of, label_of, load_yaml, types_of
from lorakit.errors import UserError
from widgets.i18n import say, words
from widgets.page import GREY, RED

FAR = 1e9  # numbers beyond it have no place on a slider, of whatever setting


class Layouts:
    """Layouts and styles that all rows of a form share: each would be an object of the page, and there are many rows.

    On a wide page a row has three columns; on a narrow one they stand below each other.
    """

    def __init__(self):
        layout = ipywidgets.Layout
        self._row = {"flex_flow": "row wrap", "align_items": "flex-start", "width": "100%", "margin": "0 0 6px 0"}
        self.label = layout(flex="0 0 170px", width="auto", margin="2px 8px 0 0")
        self.middle = layout(flex="0 1 400px", width="auto", min_width="240px", max_width="100%")
        self.note = layout(flex="1 1 300px", width="auto", min_width="240px", margin="2px 0 0 10px")
        self.line, self.wide = layout(width="100%"), layout(width="auto", flex="1 1 auto", min_width="0")
        self.short = layout(width="150px")
        self.slider = layout(flex="1 1 120px", min_width="80px", width="auto")
        self.number = layout(width="92px", flex="0 0 92px")
        button = {"width": "34px", "flex": "0 0 34px"}
        self.button, self.no_button = layout(**button), layout(**button, visibility="hidden")
        self._text, self.button_style = ipywidgets.HTML().style, ipywidgets.Button().style

    def text(self, value: str = "") -> Any:
        """A widget that shows HTML."""
        return ipywidgets.HTML(value, style=self._text)

    def as_row(self, label: Any, middle: Any, note: Any) -> Any:
        """A row of the form."""
        label.layout, middle.layout, note.layout = self.label, self.middle, self.note
        return ipywidgets.HBox([label, middle, note], layout=ipywidgets.Layout(**self._row))


class Plain:
    """A widget whose value is a setting's, by way of two functions."""

    def __init__(self, widget: Any, into: Callable[[Any], Any], outof: Callable[[Any], Any]):
        self.widget, self._into, self._outof = widget, into, outof

    def read(self) -> Any:
        return self._outof(self.widget.value)

    def show(self, value: Any) -> None:
        self.widget.value = self._into(value)

    def listen(self, changed: Callable[[], None]) -> None:
        self.widget.observe(lambda change: changed(), "value")


class Choosing(Plain):
    """A dropdown; it also shows a value that is not among its choices, which is then explained."""

    def __init__(self, choices: Iterable[Any], **look: Any):
        told = [(str(value), value) for value in choices]
        super().__init__(ipywidgets.Dropdown(options=told, **look), lambda value: value, lambda value: value)

    def show(self, value: Any) -> None:
        if value not in [known for _, known in self.widget.options]:
            self.widget.options = (*self.widget.options, (str(value), value))
        super().show(value)


class Suggesting:
    """A text field beside a list of texts that are known to work; choosing one writes it into the field."""

    def __init__(self, field: Any, suggestions: tuple[str, ...], layouts: Layouts):
        told = [(say("known"), ""), *((text if len(text) < 60 else f"{text[:60]}…", text) for text in suggestions)]
        self.field, self.list = field, ipywidgets.Dropdown(options=told, layout=layouts.number)
        self.list.observe(lambda change: self._choose(change["new"]), "value")
        self.widget = ipywidgets.HBox([field, self.list], layout=layouts.wide)

    def read(self) -> str:
        return self.field.value

    def show(self, value: Any) -> None:
        self.field.value = str(value)

    def listen(self, changed: Callable[[], None]) -> None:
        self.field.observe(lambda change: changed(), "value")

    def _choose(self, text: str) -> None:
        if text:
            self.field.value = text
            self.list.value = ""  # it shows no choice of its own


class Sliding:
    """A slider over the usual values of a number, with a text field beside it that takes every value.

    A logarithmic slider has 0 at its left end. Values beyond its ends move them.
    """

    def __init__(self, f: dataclasses.Field, wanted: type, layouts: Layouts):
        ui: Slider = f.metadata["ui"]
        low, high, step = ui.low, ui.high, ui.step
        self._log, self._whole, self._limits = ui.log, wanted is int, f.metadata["range"]
        self._zero = self._log and self._limits[0] == 0
        self._silent = False
        kind = ipywidgets.IntSlider if self._whole else ipywidgets.FloatSlider
        place = low
        if self._log:
            low, high = math.log10(low) - (step if self._zero else 0), math.log10(high)
            kind, place = ipywidgets.FloatLogSlider, 10**low
        self.slider = kind(value=place, min=low, max=high, step=step, readout=False, layout=layouts.slider)
        self.text = ipywidgets.Text(continuous_update=False, layout=layouts.number)
        self.widget = ipywidgets.HBox([self.slider, self.text], layout=layouts.wide)

    def read(self) -> Any:
        return _number(self.text.value)

    def show(self, value: Any) -> None:
        self._silently(self._write, value)
        self._silently(self._place, value)

    def listen(self, changed: Callable[[], None]) -> None:
        def moved(change: dict) -> None:
            if not self._silent and self._is_elsewhere(change["new"]):
                self._silently(self._write, self._at(change["new"]))
                changed()

        def typed(change: dict) -> None:
            if not self._silent:
                if self._may_be(value := self.read()):
                    self._silently(self._place, value)
                changed()

        self.slider.observe(moved, "value")
        self.text.observe(typed, "value")

    def _silently(self, act: Callable[[Any], None], value: Any) -> None:
        self._silent = True  # what follows from a change is no change of its own
        try:
            act(value)
        finally:
            self._silent = False

    def _may_be(self, value: Any) -> bool:
        """Whether it is a number within the setting's own limits; others have no place on a slider."""
        low, high = self._limits
        is_number = isinstance(value, (int, float)) and abs(value) < FAR
        return is_number and (low is None or value >= low) and (high is None or value <= high)

    def _is_elsewhere(self, place: float) -> bool:
        """Whether a slider was moved; a page puts it on its nearest step by itself, which is no change."""
        value = self.read()
        if not self._may_be(value):
            return True
        if self._log:
            place, value = math.log10(place), math.log10(value) if value > 0 else self.slider.min
        return abs(place - value) > 0.51 * self.slider.step

    def _write(self, value: Any) -> None:
        self.text.value = _number_text(value, self._log)

    def _place(self, value: Any) -> None:
        """Move the slider to a value, and its ends where that lies beyond them."""
        slider = self.slider
        if not self._log:
            slider.min, slider.max = min(slider.min, value), max(slider.max, value)
            slider.value = int(value) if self._whole else value
        elif value <= 0:
            slider.value = 10**slider.min
        else:
            place = math.log10(value)
            slider.min, slider.max = min(slider.min, math.floor(place)), max(slider.max, math.ceil(place))
            slider.value = value

    def _at(self, place: float) -> Any:
        """The setting that a place of the slider stands for; two digits are as exact as a hand is."""
        if self._zero and math.log10(place) < self.slider.min + self.slider.step / 2:
            return 0.0
        return place if self._whole else float(f"{place:.2g}") if self._log else float(f"{place:.6g}")


def label_and_help(path: str, config_class: type[Config], name: str) -> tuple[str, str]:
    """Label and help of a setting in the reader's language; those of the base model are translated by family."""
    f = config_class.__dataclass_fields__[name]
    key = f"{config_class.family}.{name}" if path.startswith("model.") else path
    label, help = words("settings", key, label_of(f), f.metadata["help"])
    return label[:1].upper() + label[1:], help


def value_text(value: Any) -> str:
    """A value in a sentence."""
    if isinstance(value, bool):
        return say("yes") if value else say("no")
    return _number_text(value, True) if isinstance(value, (int, float)) else str(value)


def _number_text(value: Any, scientific: bool) -> str:
    """A number as people write it: 1e-4, 0.05, 16."""
    if scientific and 0 < value < 0.01:
        digits, exponent = f"{value:.6e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _number(text: str) -> Any:
    """The number that a text says, else the text, which the setting then refuses."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def control(
    layouts: Layouts, config_class: type[Config], name: str, options: Iterable[Any] = ()
) -> Plain | Sliding | Suggesting:
    """What a setting is set with, by its type, its choices (`options`: fewer of them) and its slider."""
    f, wanted = config_class.__dataclass_fields__[name], types_of(config_class)[name]
    wide, short = {"layout": layouts.wide}, {"layout": layouts.short}
    if allowed := tuple(options) or choices_of(f):
        return Choosing(allowed, **wide)
    if wanted is bool:
        return Plain(ipywidgets.Checkbox(indent=False, description="", **short), bool, bool)
    if isinstance(f.metadata["ui"], Slider):
        return Sliding(f, wanted, layouts)
    if wanted is int:
        return Plain(ipywidgets.IntText(**short), int, int)
    if wanted is float:
        return Plain(ipywidgets.Text(continuous_update=False, **short), lambda v: _number_text(v, False), _number)
    if wanted is str:
        lines, suggestions = f.metadata["ui"].lines, f.metadata["ui"].suggestions
        field = ipywidgets.Textarea(rows=lines, **wide) if lines > 1 else ipywidgets.Text(**wide)
        return Suggesting(field, suggestions, layouts) if suggestions else Plain(field, str, str)
    if typing.get_origin(wanted) is tuple and typing.get_args(wanted)[0] is str:
        area = ipywidgets.Textarea(rows=3, placeholder=say("one a line"), **wide)
        return Plain(area, "\n".join, lambda text: tuple(line.strip() for line in text.splitlines() if line.strip()))
    area = ipywidgets.Textarea(rows=2, placeholder="YAML", continuous_update=False, **wide)
    return Plain(area, _yaml, lambda text: _structured(text, dict if wanted is dict else tuple))


def _structured(text: str, kind: type) -> Any:
    """What YAML in a field says; nothing is the empty `kind`. Raises ConfigError when it is not YAML."""
    found = load_yaml(text, say("The text")) or kind()
    return tuple(found) if kind is tuple and isinstance(found, list) else found


def _yaml(value: Any) -> str:
    plain = [*value] if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, allow_unicode=True, sort_keys=False).strip() if value else ""


class Row:
    """A setting as a row of the form; `changed(row)` and `undone(row)` are called when its user acts.

    path        as `part.name`
    beside      widgets that stand before its own
    """

    def __init__(
        self,
        layouts: Layouts,
        path: str,
        config_class: type[Config],
        name: str,
        changed: Callable[[Row], None],
        undone: Callable[[Row], None],
        options: Iterable[Any] = (),
        beside: tuple = (),
    ):
        f = config_class.__dataclass_fields__[name]
        self.path, self.when = path, f.metadata["ui"].when
        self.control = control(layouts, config_class, name, options)
        self._helps, self._unit = helps_of(f), f.metadata["unit"]
        self._label, self._help = label_and_help(path, config_class, name)
        self._silent = False
        self._undo = ipywidgets.Button(
            icon="undo",
            tooltip=say("let go of what was set by hand"),
            layout=layouts.no_button,
            style=layouts.button_style,
        )
        self._undo.on_click(lambda button: undone(self))
        self._layouts, self._head, self._note = layouts, layouts.text(), layouts.text()
        self._trouble: Any = None  # made when there is any
        self._line = ipywidgets.HBox([*beside, self.control.widget, self._undo], layout=layouts.line)
        self._middle = ipywidgets.VBox([self._line], layout=layouts.middle)
        self.widget = layouts.as_row(self._head, self._middle, self._note)
        self.control.listen(lambda: None if self._silent else changed(self))

    def show(self, value: Any, *, by_hand: bool, trouble: str, colour: str = RED, keeps: bool = False) -> None:
        """Show a value (unless the widget `keeps` what was typed), whether it was set by hand, and what is wrong."""
        if not keeps:
            self._silent = True
            try:
                self._write(value)
            finally:
                self._silent = False
        unit = f" <span style='color:{GREY}'>{html.escape(self._unit)}</span>" if self._unit else ""
        label = html.escape(self._label)
        _set(self._head, f"<div style='line-height:1.3'>{f'<b>{label}</b>' if by_hand else label}{unit}</div>")
        own = self._helps.get(value, "") if isinstance(value, str) else ""
        row = f"<b>{html.escape(value)}</b>: {html.escape(say(own))}" if own else ""
        help = "" if row and self._help.lower() == self._label.lower() else html.escape(self._help)
        _set(self._note, help_html(f"{row} · {help}" if row and help else row or help))
        # it keeps its place, so that nothing moves below a hand that drags
        self._undo.layout = self._layouts.button if by_hand else self._layouts.no_button
        self._explain(problem_html(trouble, colour))

    @property
    def trouble(self) -> str:
        """What is shown to be wrong, as HTML; "" for nothing."""
        return self._trouble.value if self._trouble else ""

    def _explain(self, trouble: str) -> None:
        if trouble and self._trouble is None:
            self._trouble = self._layouts.text()
            self._middle.children = (self._line, self._trouble)
        if self._trouble is not None:
            _set(self._trouble, trouble)
            self._trouble.layout.display = "" if trouble else "none"

    def hide(self, hidden: bool) -> None:
        """Take the row away while its setting does not matter."""
        self.widget.layout.display = "none" if hidden else ""

    def _write(self, value: Any) -> None:
        try:
            same = self.control.read() == value
        except UserError:
            same = False
        if not same:
            self.control.show(value)


def _set(widget: Any, text: str) -> None:
    if widget.value != text:  # a message less
        widget.value = text


def help_html(text: str) -> str:
    """Help below or beside a field, as HTML."""
    return f"<div style='color:{GREY};font-size:12px;line-height:1.35'>{text}</div>"


def problem_html(text: str, colour: str = RED) -> str:
    """What is wrong, as HTML; "" for nothing."""
    lines = "<br>".join(html.escape(line) for line in text.splitlines())
    return f"<div style='color:{colour};font-size:12px;line-height:1.35'>{lines}</div>" if text else ""


def is_basic(config_class: type[Config], name: str) -> bool:
    """Whether beginners see a setting: when its Config says so, and when it has no default."""
    f = config_class.__dataclass_fields__[name]
    return f.metadata["ui"].basic or (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
