"""The list of a project's runs: how far each is, and buttons to view it, go on with it, stop it, take its file."""

from __future__ import annotations

import html
import importlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import ipywidgets

from lorakit.errors import UserError
from lorakit.project import Project, Run
from lorakit.training import jobs
from widgets.i18n import say
from widgets.images import thumbnail
from widgets.page import BLUE, GREY, RED, WIDTH, bar, box, facts, span
from widgets.plot import number, spark
from widgets.training.history import History
from widgets.training.live import STATES, kept, render, trouble

SIDE = 84  # px of the newest sample
GOES_ON = ("new", "stopped", "failed", "cut")  # states in which a trainer can be started


def runs(project: Project) -> None:
    """Show all runs of a project, with their buttons."""
    from IPython.display import display

    display(RunList(project).widget)


def row(run: Run) -> str:
    """One run as HTML: newest sample, state, steps, loss and what is saved. Needs nothing but the run's folder."""
    history, (state, _), now = History(run.log).read_on(), jobs.history(run), time.time()
    told = [say("step {step} / {steps}", step=history.step, steps=history.total)] if history.total else []
    _, smooth = history.losses()
    loss = f"<span>{html.escape(say('loss'))} {number(smooth[-1][1], 4)} {spark(smooth)}</span>" if smooth else ""
    dates = [*kept(run, history, now), say("last sign of life {span} ago", span=span(now - history.at))]
    shown = _newest(run, history)
    colour = RED if state in ("failed", "cut") else BLUE
    return (
        f'<div style="max-width:{WIDTH}px;overflow:hidden;line-height:1.5;padding:6px 0">'
        f'<div style="float:left;width:{SIDE}px;height:{SIDE}px;margin-right:12px">{shown}</div>'
        f'<div style="overflow:hidden"><div><b>{html.escape(run.name)}</b> · '
        f'<span style="color:{colour}">{html.escape(say(STATES[state]))}</span></div>'
        f'<div style="margin:3px 0">{bar(history.step / max(1, history.total), colour, 4)}</div>'
        f"{facts(told)}{loss}{facts(dates) if history.at else ''}</div></div>"
    )


def served(file: Path) -> str:
    """The address at which this kernel's Jupyter server hands out a file, without its host; "" when it does not.

    A link relative to the notebook would not do: JupyterLab opens what it points to instead of handing it over.
    """
    from IPython import get_ipython

    shell = get_ipython()
    connection = shell.config.get("IPKernelApp", {}).get("connection_file") if shell else None
    if not connection or "JPY_PARENT_PID" not in os.environ:
        return ""
    told = Path(connection).parent / f"jpserver-{os.environ['JPY_PARENT_PID']}.json"
    if not told.exists():
        return ""
    server = json.loads(told.read_text(encoding="utf-8"))
    if not file.is_relative_to(server["root_dir"]):
        return ""
    return f"{server['base_url']}files/{quote(file.relative_to(server['root_dir']).as_posix())}?download=1"


def _newest(run: Run, history: History) -> str:
    """The sample painted last, or an empty place."""
    for step in sorted(history.samples, reverse=True)[:1]:
        if source := thumbnail(run.folder / next(iter(history.samples[step].values())).image, SIDE):
            return f'<img src="{source}" style="width:{SIDE}px;border-radius:4px">'
    frame = f"width:{SIDE}px;height:{SIDE}px;border-radius:4px;background-color:rgba(128,128,128,0.15)"
    return f'<div style="{frame}"></div>'


class RunList:
    """The widget: `widget` is to be displayed. A click changes what stands in it and draws nothing elsewhere."""

    def __init__(self, project: Project):
        self.project = project
        self.rows: dict[str, ipywidgets.HTML] = {}
        self.buttons: dict[str, dict[str, ipywidgets.Button]] = {}
        self.message, self.detail = ipywidgets.HTML(), ipywidgets.HTML()
        self.list = ipywidgets.VBox()
        refresh = self._button(say("Refresh"), "refresh", self.refresh)
        self.widget = ipywidgets.VBox([self._bar([refresh]), self.list, self.message, self.detail])
        self.refresh()

    def refresh(self) -> None:
        """Read the project again: new runs appear, figures are of now."""
        found = self.project.runs()
        for run in found:
            if run.name not in self.rows:
                self._add(run)
            self._draw(run)
        self.list.children = [
            ipywidgets.VBox([self.rows[run.name], self._bar(list(self.buttons[run.name].values()))]) for run in found
        ]
        empty = box(say("There are no runs in {folder} yet.", folder=self.project.folder), GREY)
        self.message.value = trouble(self.project, time.time()) if found else empty

    def _add(self, run: Run) -> None:
        self.rows[run.name] = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        self.buttons[run.name] = {
            "view": self._button(say("View"), "eye", partial(self.view, run)),
            "go on": self._button(say("Continue"), "play", partial(self.go_on, run)),
            "stop": self._button(say("Stop"), "stop", partial(self.stop, run)),
            "download": self._button(say("Download newest LoRA"), "download", partial(self.download, run)),
        }

    def _draw(self, run: Run) -> None:
        state, buttons = jobs.history(run)[0], self.buttons[run.name]
        self.rows[run.name].value = row(run)
        fits = {"go on": state in GOES_ON, "stop": state == "running", "download": bool(run.lora_steps())}
        for name, is_shown in fits.items():
            buttons[name].layout.display = "" if is_shown else "none"
        buttons["go on"].description = say("Start") if state == "new" else say("Continue")

    def view(self, run: Run) -> None:
        """Show all of a run below the list, as it is now."""
        self.detail.value = render(run)

    def go_on(self, run: Run) -> None:
        """Train a run in the background."""
        jobs.start(run)
        self._say(
            say(
                "{run} trains in the background now. Watch it with View, or live in a cell of its own: {code}",
                run=run.name,
                code=f'watch(project.run("{run.name}"))',
            )
        )
        self._draw(run)

    def stop(self, run: Run) -> None:
        """Ask a run's trainer to finish its step, save and stop."""
        jobs.stop(run)
        self._say(say("{run} finishes its step, saves and stops; Refresh shows when it has.", run=run.name))
        self._draw(run)

    def download(self, run: Run) -> None:
        """Hand over the newest exported file: as the browser's download where that is possible, else by its path."""
        file = run.lora_file(run.lora_steps()[-1])
        self._say(say("The newest file: {file}", file=file))
        try:
            colab = importlib.import_module("google.colab.files")
        except ImportError:  # not in Colab
            if address := served(file):
                words = html.escape(say("Download {name}", name=file.name))
                self.message.value += f'<a href="{address}" download style="color:{BLUE}">{words}</a>'
        else:
            colab.download(str(file))

    def _say(self, text: str) -> None:
        self.message.value = box(text, BLUE)

    def _button(self, words: str, icon: str, act: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=words, icon=icon, layout=ipywidgets.Layout(width="auto"))
        button.on_click(partial(self._clicked, act))
        return button

    def _clicked(self, act: Callable[[], None], button: ipywidgets.Button) -> None:
        try:
            act()
        except UserError as error:
            self.message.value = box(str(error), RED)

    def _bar(self, buttons: list[ipywidgets.Button]) -> ipywidgets.HBox:
        return ipywidgets.HBox(buttons, layout=ipywidgets.Layout(flex_flow="row wrap"))
