"""One setting in a form: its label and unit, its control, its help, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets

from lorakit.config import Config, helps_of, label_of
from lorakit.errors import UserError
from widgets.choices import choice_label
from widgets.controls import control, number_text
from widgets.i18n import say, words
from widgets.layouts import Layouts
from widgets.page import GREY, RED


class Row:
    """A setting as a row of the form; `changed(row)` and `undone(row)` are called when its user acts.

    path        as `part.name`
    setting     its Config and its name there
    options     a subset of the setting's choices; () for all of them
    """

    def __init__(
        self,
        layouts: Layouts,
        path: str,
        setting: tuple[type[Config], str],
        changed: Callable[[Row], None],
        undone: Callable[[Row], None],
        options: Iterable[Any] = (),
    ):
        config_class, name = setting
        f = config_class.__dataclass_fields__[name]
        self.path, self.when = path, f.metadata["ui"].when
        self.control = control(layouts, setting, options)
        self._helps, self._unit = helps_of(f), f.metadata["unit"]
        self.label, self._help = label_and_help(path, config_class, name)
        self._silent = False
        self.undo = ipywidgets.Button(
            icon="undo", tooltip=say("Reset"), layout=layouts.no_button, style=layouts.button_style
        )
        self.undo.on_click(lambda button: undone(self))
        # the three columns: label, control with its problem below, help
        self._layouts, self.head, self.note = layouts, layouts.text(), layouts.text()
        # A widget of its own, made when something is wrong for the first time.
        self._problem: Any = None
        self._line = ipywidgets.HBox([self.control.widget, self.undo], layout=layouts.line)
        self._middle = ipywidgets.VBox([self._line], layout=layouts.middle)
        self.widget = layouts.as_row(self.head, self._middle, self.note)
        # A value that is shown from here is no change by the user.
        self.control.listen(lambda: None if self._silent else changed(self))

    def put_first(self, widget: Any) -> None:
        """Place another widget before the control, in the same line."""
        self._line.children = (widget, *self._line.children)

    def show(self, value: Any, *, by_hand: bool, problem: str, colour: str = RED, keeps: bool = False) -> None:
        """Show a value (unless the control `keeps` what was typed), whether it was set by hand, and what is wrong."""
        if not keeps:
            self._silent = True
            try:
                self._write(value)
            finally:
                self._silent = False
        unit = f" <span style='color:{GREY}'>{html.escape(self._unit)}</span>" if self._unit else ""
        label = html.escape(self.label)
        _set(self.head, f"<div style='line-height:1.3'>{f'<b>{label}</b>' if by_hand else label}{unit}</div>")
        _set(self.note, help_html(self._note_of(value)))
        # Another layout rather than another property: rows share their layouts, and one row's change would change all.
        self.undo.layout = self._layouts.button if by_hand else self._layouts.no_button
        self._explain(problem_html(problem, colour))

    @property
    def problem(self) -> str:
        """What is shown to be wrong, as HTML; "" for nothing."""
        return self._problem.value if self._problem else ""

    def hide(self, hidden: bool) -> None:
        """Take the row away while its setting does not matter."""
        self.widget.layout.display = "none" if hidden else ""

    def _note_of(self, value: Any) -> str:
        """The help of the chosen value, then that of the setting, unless it only repeats the label."""
        # Only values of a registry, such as optimizers, have a help of their own.
        help, of_value = html.escape(self._help), self._helps.get(value, "") if isinstance(value, str) else ""
        if not of_value:
            return help
        about = f"<b>{html.escape(choice_label(value))}</b>: {html.escape(say(of_value))}"
        return about if self._help.lower() == self.label.lower() else f"{about} · {help}"

    def _explain(self, problem: str) -> None:
        if problem and self._problem is None:
            self._problem = self._layouts.text()
            # Made late, as most of a form's hundred rows never have a problem and each widget costs time to show.
            self._middle.children = (self._line, self._problem)
        if self._problem is not None:
            _set(self._problem, problem)
            self._problem.layout.display = "" if problem else "none"

    def _write(self, value: Any) -> None:
        try:
            same = self.control.read() == value
        except UserError:
            # A YAML text that is still being typed.
            same = False
        # Equal values are not written again: that would move the cursor in a text field, or remove a line break.
        if not same:
            self.control.show(value)


def label_and_help(path: str, config_class: type[Config], name: str) -> tuple[str, str]:
    """Label and help of a setting in the reader's language; those of the base model are translated by family."""
    f = config_class.__dataclass_fields__[name]
    # model.vae of one family may be something else than that of another
    key = f"{config_class.family}.{name}" if path.startswith("model.") else path
    label, help = words("settings", key, label_of(f), f.metadata["help"])
    return label[:1].upper() + label[1:], help


def value_text(value: Any) -> str:
    """A setting's value in a sentence."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number_text(value, True) if is_number else choice_label(value)


def is_basic(config_class: type[Config], name: str) -> bool:
    """Whether beginners see a setting: when its Config says so, and when it has no default."""
    f = config_class.__dataclass_fields__[name]
    return f.metadata["ui"].basic or (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)


def help_html(text: str) -> str:
    """Help below or beside a field; `text` is HTML."""
    return f"<div style='color:{GREY};font-size:12px;line-height:1.35'>{text}</div>"


def problem_html(text: str, colour: str = RED) -> str:
    """What is wrong, as HTML; "" for nothing. `text` is plain, its lines are kept."""
    lines = "<br>".join(html.escape(line) for line in text.splitlines())
    return f"<div style='color:{colour};font-size:12px;line-height:1.35'>{lines}</div>" if text else ""


def _set(widget: Any, text: str) -> None:
    """Set a widget's text; an equal one is not sent to the page again."""
    # Each message to the page costs time, and a form has hundreds of texts.
    if widget.value != text:
        widget.value = text
