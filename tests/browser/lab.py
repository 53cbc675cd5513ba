"""A real JupyterLab in a headless browser, driven as a user does it: open, run, interrupt, reload, screenshots."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from lorakit import events
from lorakit.project import Run

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Chromium looks for updates and hosts of its maker; a closed network would make it wait for each.
QUIET = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Cells off the screen stay in the page, and JupyterLab does not look for news on the network.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
CELLS = "jupyterapp.shell.currentWidget.content.widgets"


def browser() -> str | None:
    """The browser on this machine's PATH."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """JupyterLab on `folder`, on loopback only; the value is its address. Kernels import this checkout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = folder / ".lab"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    log = open(settings / "log.txt", "w")
    arguments = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": "",
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "LabApp.expose_app_in_browser": True,
        "LabServerApp.app_settings_dir": settings,
        "LabApp.app_settings_dir": settings,
        "LabApp.user_settings_dir": settings / "user",
        "LabApp.workspaces_dir": settings / "workspaces",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in arguments.items())],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_RUNTIME_DIR": str(settings / "runtime")},
        cwd=folder,
        stdout=log,
        stderr=log,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(lambda: _answers(f"{address}/api/status"), 60, f"JupyterLab: {settings / 'log.txt'}")
        yield address
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5):
            return True
    except (URLError, ConnectionError, TimeoutError):
        return False


def _wait_for(holds, seconds: float, what: str, every: float = 0.2) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)


def until_step(run: Run, step: int, seconds: float) -> None:
    """Wait until a run has done a step. (A view, at most one a second, may never show just this one.)"""
    _wait_for(lambda: max(events.steps(run.log), default=0) >= step, seconds, f"step {step} of {run.name}", every=0.1)


class Notebook:
    """One notebook open in a page."""

    def __init__(self, page, address: str, name: str):
        self.page = page
        self.address = f"{address}/doc/tree/{name}"
        self.stem = Path(name).stem
        self.open()

    def open(self) -> None:
        """Load the page, or load it again as a user who reloads it does."""
        self.page.goto(self.address)
        self.page.wait_for_function(
            "() => ['idle', 'busy'].includes("
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status)",
            timeout=90_000,
        )

    def command(self, name: str, **arguments) -> None:
        """One of JupyterLab's own commands, without waiting for what it starts."""
        self.page.evaluate(f"void jupyterapp.commands.execute({name!r}, {json.dumps(arguments)})")

    def cell_with(self, text: str) -> int:
        """The number of the first code cell whose source holds `text`."""
        sources = self.page.evaluate(f"{CELLS}.map(cell => [cell.model.type, cell.model.sharedModel.source])")
        return next(i for i, (kind, source) in enumerate(sources) if kind == "code" and text in source)

    def begin(self, cell: int) -> None:
        """Start one cell."""
        self.page.evaluate(f"jupyterapp.shell.currentWidget.content.activeCellIndex = {cell}")
        self.command("notebook:run-cell")

    def run(self, cell: int, seconds: float = 120) -> str:
        """Run one cell to its end; returns the text below it. A traceback fails the test."""
        self.begin(cell)
        self.wait(cell, seconds)
        return self.text(cell)

    def run_all(self, seconds: float = 600) -> None:
        """Run All, to the end; a traceback fails the test."""
        self.command("notebook:run-all-cells")
        count = self.page.evaluate(f"{CELLS}.length")
        kinds = self.page.evaluate(f"{CELLS}.map(cell => cell.model.type)")
        end = time.monotonic() + seconds
        for cell in (i for i in range(count) if kinds[i] == "code"):
            self.wait(cell, end - time.monotonic())

    def wait(self, cell: int, seconds: float) -> None:
        """Until a cell that was started has ended."""
        prompt = f"{CELLS}[{cell}].model"
        _wait_for(
            lambda: self.page.evaluate(f"{prompt}.executionState == 'idle' && {prompt}.executionCount !== null"),
            seconds,
            f"cell {cell} of {self.stem}",
        )
        errors = self.page.evaluate(
            f"{prompt}.outputs.toJSON().filter(o => o.output_type == 'error').map(o => o.ename + ': ' + o.evalue)"
        )
        assert not errors, f"cell {cell} of {self.stem}: {errors}"

    def text(self, cell: int) -> str:
        """The text below a cell."""
        return self.page.evaluate(f"{CELLS}[{cell}].node.querySelector('.jp-Cell-outputArea')?.innerText ?? ''")

    def until(self, cell: int, text: str, seconds: float, gone: bool = False) -> float:
        """Wait until `text` stands below a cell, or no more; returns the seconds that it took."""
        begun = time.monotonic()
        while (text in (shown := self.text(cell))) is gone:
            problem = f"{text!r} {'gone ' * gone}below cell {cell} of {self.stem}: not within {seconds:.0f} s"
            assert time.monotonic() < begun + seconds, f"{problem}, but {shown!r}"
            time.sleep(0.1)
        return time.monotonic() - begun

    def output_bytes(self, cell: int) -> int:
        """Size of a cell's output without its images, as it would be saved."""
        outputs = self.page.evaluate(f"{CELLS}[{cell}].model.outputs.toJSON()")
        for output in outputs:
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                del output["data"][kind]
        return len(json.dumps(outputs))

    def interrupt(self) -> None:
        """The interrupt button."""
        self.command("kernelmenu:interrupt")

    def theme(self, name: str) -> None:
        """JupyterLab Light or JupyterLab Dark."""
        self.page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: {name!r}}})")
        self.page.wait_for_timeout(1500)

    def image(self, name: str, width: int = 1280, first: int | None = None) -> Path:
        """A screenshot of the whole notebook, or from a cell on, in screenshots/<notebook>-<name>.png."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.wait_for_timeout(500)
        height = self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
        self.page.set_viewport_size({"width": width, "height": min(8000, height + 120)})
        self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        self.page.wait_for_timeout(800)
        file = IMAGES / f"{self.stem}-{name}.png"
        target = self.page if first is None else self.page.locator(".jp-Cell").nth(first)
        target.screenshot(path=str(file))
        self.page.set_viewport_size({"width": width, "height": 900})
        return file
