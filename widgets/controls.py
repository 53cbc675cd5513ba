"""The widget that a setting is set with, chosen by the setting's type, range and choices.

Each control has `widget`, `read()`, `show(value)` and `listen(changed)`; values are those that a Config holds.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets
import yaml

from lorakit.config import Config, Slider, choices_of, load_yaml, types_of
from widgets.choices import choice_label
from widgets.i18n import say
from widgets.layouts import Layouts

# No slider reaches further, whatever its setting allows.
FAR = 1e9


class Plain:
    """A widget; `to_widget` turns a setting's value into the widget's, `from_widget` turns it back."""

    def __init__(self, widget: Any, to_widget: Callable[[Any], Any], from_widget: Callable[[Any], Any]):
        self.widget, self._to_widget, self._from_widget = widget, to_widget, from_widget

    def read(self) -> Any:
        return self._from_widget(self.widget.value)

    def show(self, value: Any) -> None:
        self.widget.value = self._to_widget(value)

    def listen(self, changed: Callable[[], None]) -> None:
        self.widget.observe(lambda change: changed(), "value")


class Choice(Plain):
    """A dropdown that shows a label for each value; a value that is not allowed is shown, too, and then explained."""

    def __init__(self, choices: Iterable[Any], layout: Any):
        # ipywidgets takes (label, value) pairs: people see the label, the value is what is stored.
        options = [(choice_label(value), value) for value in choices]
        super().__init__(ipywidgets.Dropdown(options=options, layout=layout), lambda value: value, lambda value: value)

    def show(self, value: Any) -> None:
        if value not in [value for _, value in self.widget.options]:
            # A dropdown refuses a value that is not among its options, such as one typed into a file by hand.
            self.widget.options = (*self.widget.options, (str(value), value))
        super().show(value)


class Suggestions:
    """A text field beside a list of texts that are known to work; choosing one writes it into the field."""

    def __init__(self, field: Any, suggestions: tuple[str, ...], layouts: Layouts):
        # Long texts would make the list wider than the page.
        short = [(text if len(text) < 60 else f"{text[:60]}…", text) for text in suggestions]
        options = [(say("Suggestions"), ""), *short]
        self.field, self.list = field, ipywidgets.Dropdown(options=options, layout=layouts.number)
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
            # Back to its title: the list only fills the field.
            self.list.value = ""


class Number:
    """A slider over the usual values of a number, with a text field beside it that takes every value.

    A logarithmic slider has 0 at its left end. A value beyond an end moves that end.
    """

    def __init__(self, f: dataclasses.Field, value_type: type, layouts: Layouts):
        ui: Slider = f.metadata["ui"]
        low, high, step = ui.low, ui.high, ui.step
        self._log, self._whole, self._limits = ui.log, value_type is int, f.metadata["range"]
        # 0 has no logarithm: one step is added at the left end, which stands for it
        self._zero = self._log and self._limits[0] == 0
        self._silent = False
        kind = ipywidgets.IntSlider if self._whole else ipywidgets.FloatSlider
        place = low
        if self._log:
            low, high = math.log10(low) - (step if self._zero else 0), math.log10(high)
            kind, place = ipywidgets.FloatLogSlider, 10**low
        # No readout: the text field beside the slider shows the value, and takes every other one.
        self.slider = kind(value=place, min=low, max=high, step=step, readout=False, layout=layouts.slider)
        # A change arrives on Enter or when the field is left, not with each typed character.
        self.text = ipywidgets.Text(continuous_update=False, layout=layouts.number)
        self.widget = ipywidgets.HBox([self.slider, self.text], layout=layouts.wide)

    def read(self) -> Any:
        return number_of(self.text.value)

    def show(self, value: Any) -> None:
        self._silently(self._write_text, value)
        self._silently(self._move_slider, value)

    def listen(self, changed: Callable[[], None]) -> None:
        # Handlers are also called for changes that the kernel makes; those are silent.
        def slid(change: dict) -> None:
            if not self._silent and self._was_moved(change["new"]):
                self._silently(self._write_text, self._value_at(change["new"]))
                changed()

        def typed(change: dict) -> None:
            if not self._silent:
                if self._fits_slider(value := self.read()):
                    self._silently(self._move_slider, value)
                changed()

        self.slider.observe(slid, "value")
        self.text.observe(typed, "value")

    def _silently(self, act: Callable[[Any], None], value: Any) -> None:
        """Slider and text set each other; such a change is not reported as one of its own."""
        self._silent = True
        try:
            act(value)
        finally:
            self._silent = False

    def _fits_slider(self, value: Any) -> bool:
        """Whether it is a number within the setting's own limits; others cannot be shown on a slider."""
        low, high = self._limits
        is_number = isinstance(value, (int, float)) and abs(value) < FAR
        return is_number and (low is None or value >= low) and (high is None or value <= high)

    def _was_moved(self, place: float) -> bool:
        """Whether a slider was moved by hand: a page also rounds its value to a step, which is no change."""
        value = self.read()
        if not self._fits_slider(value):
            return True
        if self._log:
            place, value = math.log10(place), math.log10(value) if value > 0 else self.slider.min
        # half a step is rounding; the rest is room for floating point
        return abs(place - value) > 0.51 * self.slider.step

    def _write_text(self, value: Any) -> None:
        self.text.value = number_text(value, self._log)

    def _move_slider(self, value: Any) -> None:
        """Move the slider to a value, and its ends where the value lies beyond them."""
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

    def _value_at(self, place: float) -> Any:
        """The value at a place of the slider, rounded to what a hand can set: two digits on a logarithmic slider."""
        if self._zero and math.log10(place) < self.slider.min + self.slider.step / 2:
            return 0.0
        return place if self._whole else float(f"{place:.2g}") if self._log else float(f"{place:.6g}")


Control = Plain | Number | Suggestions


def control(layouts: Layouts, setting: tuple[type[Config], str], options: Iterable[Any] = ()) -> Control:
    """The control of a setting (its Config, its name); `options` are fewer choices than its own."""
    config_class, name = setting
    f, value_type = config_class.__dataclass_fields__[name], types_of(config_class)[name]
    wide, short = {"layout": layouts.wide}, {"layout": layouts.short}
    if allowed := tuple(options) or choices_of(f):
        return Choice(allowed, layouts.wide)
    if value_type is bool:
        return Plain(ipywidgets.Checkbox(indent=False, description="", **short), bool, bool)
    # before int and float: both may have a slider
    if isinstance(f.metadata["ui"], Slider):
        return Number(f, value_type, layouts)
    if value_type is int:
        return Plain(ipywidgets.IntText(**short), int, int)
    if value_type is float:
        return Plain(ipywidgets.Text(continuous_update=False, **short), lambda v: number_text(v, False), number_of)
    if value_type is str:
        lines, suggestions = f.metadata["ui"].lines, f.metadata["ui"].suggestions
        field = ipywidgets.Textarea(rows=lines, **wide) if lines > 1 else ipywidgets.Text(**wide)
        return Suggestions(field, suggestions, layouts) if suggestions else Plain(field, str, str)
    if typing.get_origin(value_type) is tuple and typing.get_args(value_type)[0] is str:
        area = ipywidgets.Textarea(rows=3, placeholder=say("one per line"), **wide)
        return Plain(area, "\n".join, lambda text: tuple(line.strip() for line in text.splitlines() if line.strip()))
    # tables, and lists of tables, are written as YAML
    kind = typing.get_origin(value_type) or value_type
    area = ipywidgets.Textarea(rows=2, placeholder="YAML", continuous_update=False, **wide)
    return Plain(area, _yaml, lambda text: _structured(text, kind))


def number_text(value: Any, scientific: bool) -> str:
    """A number as people write it: 1e-4 (`scientific`, below 0.01), 0.05, 16."""
    # Python itself would write 0.0001 and 1e-05
    if scientific and 0 < value < 0.01:
        digits, exponent = f"{value:.6e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def number_of(text: str) -> Any:
    """The number in a text; a text that is none is returned as it is, for the setting to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _structured(text: str, kind: type) -> Any:
    """The value of YAML in a field, an empty `kind` without any. Raises ConfigError when it is not YAML."""
    value = load_yaml(text, say("The text")) or kind()
    return tuple(value) if kind is tuple and isinstance(value, list) else value


def _yaml(value: Any) -> str:
    plain = [*value] if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, allow_unicode=True, sort_keys=False).strip() if value else ""
