"""The list of a project's runs: how far each is, with buttons to view, continue, stop and download it."""

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
from widgets.plain import show
from widgets.plot import number, spark
from widgets.project.labels import labelled
from widgets.training.history import History
from widgets.training.live import STATES, copy_problem, render, saved_lines

SIDE = 84  # px of the newest sample
STARTABLE = ("new", "stopped", "failed", "cut")  # states in which a trainer can be started


def runs(project: Project) -> None:
    """Show all runs of a project, with their buttons."""

    show(RunList(project).widget)


def row(run: Run) -> str:
    """One run as HTML: newest sample, state, steps, loss and what is saved. Needs nothing but the run's folder."""
    # Read from disk each time: another machine or terminal may train the run.
    history, (state, *_), now = History(run.log).read_on(), jobs.history(run), time.time()
    progress = [say("step {step} / {steps}", step=history.step, steps=history.total)] if history.total else []
    _, smooth = history.losses()
    loss = f"<span>{html.escape(say('loss'))} {number(smooth[-1][1], 4)} {spark(smooth)}</span>" if smooth else ""
    dates = [*saved_lines(run, history, now), say("last activity {span} ago", span=span(now - history.at))]
    sample = _newest(run, history)
    # "failed" and "cut" need attention
    colour = RED if state in ("failed", "cut") else BLUE
    return (
        f'<div style="max-width:{WIDTH}px;overflow:hidden;line-height:1.5;padding:6px 0">'
        f'<div style="float:left;width:{SIDE}px;height:{SIDE}px;margin-right:12px">{sample}</div>'
        f'<div style="overflow:hidden"><div><b>{html.escape(run.name)}</b> · '
        f'<span style="color:{colour}">{html.escape(say(STATES[state]))}</span></div>'
        f'<div style="margin:3px 0">{bar(history.step / max(1, history.total), colour, 4)}</div>'
        f"{facts(progress)}{loss}{facts(dates) if history.at else ''}</div></div>"
    )


def served(file: Path) -> str:
    """The address of a file on this kernel's Jupyter server, without its host; "" when it serves no such file.

    A link relative to the notebook would not do: JupyterLab opens the file instead of downloading it.
    """
    from IPython import get_ipython

    shell = get_ipython()
    connection = shell.config.get("IPKernelApp", {}).get("connection_file") if shell else None
    # Not under Jupyter (VS Code, a terminal): no server has files to offer.
    if not connection or "JPY_PARENT_PID" not in os.environ:
        return ""
    # Jupyter writes its address beside the kernels' connection files, named by its process id.
    info = Path(connection).parent / f"jpserver-{os.environ['JPY_PARENT_PID']}.json"
    if not info.exists():
        return ""
    server = json.loads(info.read_text(encoding="utf-8"))
    # The server serves its own root folder only.
    if not file.is_relative_to(server["root_dir"]):
        return ""
    return f"{server['base_url']}files/{quote(file.relative_to(server['root_dir']).as_posix())}?download=1"


def _newest(run: Run, history: History) -> str:
    """The newest sample, or an empty frame."""
    for step in sorted(history.samples, reverse=True)[:1]:
        if source := thumbnail(run.folder / next(iter(history.samples[step].values())).image, SIDE):
            return f'<img src="{source}" style="width:{SIDE}px;border-radius:4px">'
    frame = f"width:{SIDE}px;height:{SIDE}px;border-radius:4px;background-color:rgba(128,128,128,0.15)"
    return f'<div style="{frame}"></div>'


class RunList:
    """Display `widget`. A click changes its content and shows nothing elsewhere: Colab drops output of callbacks."""

    def __init__(self, project: Project):
        self.project = project
        # By name of the run, so that a refresh changes the same widgets instead of making new ones.
        self.rows: dict[str, ipywidgets.HTML] = {}
        self.buttons: dict[str, dict[str, ipywidgets.Button]] = {}
        self.message, self.detail = ipywidgets.HTML(), ipywidgets.HTML()
        self.list = ipywidgets.VBox()
        refresh = self._button(say("Refresh"), "refresh", self.refresh)
        self.widget = ipywidgets.VBox([self._bar([refresh]), self.list, self.message, self.detail])
        self.refresh()

    def refresh(self) -> None:
        """Read the project again: new runs appear, all figures are current."""
        runs = self.project.runs()
        for run in runs:
            if run.name not in self.rows:
                self._add(run)
            self._draw(run)
        self.list.children = [
            ipywidgets.VBox([self.rows[run.name], self._bar(list(self.buttons[run.name].values()))]) for run in runs
        ]
        empty = box(say("No runs in {folder} yet.", folder=self.project.folder), GREY)
        self.message.value = copy_problem(self.project, time.time()) if runs else empty

    def _add(self, run: Run) -> None:
        self.rows[run.name] = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        self.buttons[run.name] = {
            "view": self._button(say("View"), "eye", partial(self.view, run)),
            "continue": self._button(say("Continue"), "play", partial(self.continue_run, run)),
            "stop": self._button(say("Stop"), "stop", partial(self.stop, run)),
            "download": self._button(say("Download newest LoRA"), "download", partial(self.download, run)),
        }

    def _draw(self, run: Run) -> None:
        state, buttons = jobs.history(run)[0], self.buttons[run.name]
        self.rows[run.name].value = row(run)
        fits = {"continue": state in STARTABLE, "stop": state == "running", "download": bool(run.lora_steps())}
        for name, is_shown in fits.items():
            # hidden rather than removed, so that the other buttons keep their widgets
            buttons[name].layout.display = "" if is_shown else "none"
        buttons["continue"].description = say("Start") if state == "new" else say("Continue")

    def view(self, run: Run) -> None:
        """Show a run's whole view, as it is now, below the list."""
        # Not a live view: a callback cannot draw again later.
        self.detail.value = render(run)

    def continue_run(self, run: Run) -> None:
        """Train a run in the background."""
        jobs.start(run)
        self._say(
            say(
                "{run} is now training in the background. Click View to see it, or watch it live in another cell: "
                "{code}",
                run=run.name,
                code=f'watch(project.run("{run.name}"))',
            )
        )
        self._draw(run)

    def stop(self, run: Run) -> None:
        """Ask a run's trainer to finish its step, save and stop."""
        jobs.stop(run)
        self._say(say("{run} will finish its step, save and stop. Click Refresh to see when it has.", run=run.name))
        self._draw(run)

    def download(self, run: Run) -> None:
        """Download the newest LoRA file in the browser where that is possible, else show its path."""
        file = run.lora_file(run.lora_steps()[-1])
        self._say(say("Newest LoRA file: {file}", file=file))
        # In Colab the browser cannot reach files of the machine by an address; its own module sends them.
        try:
            colab = importlib.import_module("google.colab.files")
        except ImportError:
            # Not in Colab: a link, if this kernel's Jupyter server serves the file.
            if address := served(file):
                text = html.escape(say("Download {name}", name=file.name))
                self.message.value += f'<a href="{address}" download style="color:{BLUE}">{text}</a>'
        else:
            colab.download(str(file))

    def _say(self, text: str) -> None:
        self.message.value = box(text, BLUE)

    def _button(self, label: str, icon: str, act: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, icon=icon, layout=ipywidgets.Layout(width="auto"))
        button.on_click(partial(self._clicked, act))
        return button

    def _clicked(self, act: Callable[[], None], button: ipywidgets.Button) -> None:
        try:
            act()
        except UserError as error:
            self.message.value = box(labelled(str(error)), RED)

    def _bar(self, buttons: list[ipywidgets.Button]) -> ipywidgets.HBox:
        return ipywidgets.HBox(buttons, layout=ipywidgets.Layout(flex_flow="row wrap"))
