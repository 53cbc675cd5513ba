"""The first cell of every notebook: opens the project and shows what it is."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from IPython.display import HTML, DisplayHandle, display
from ipywidgets import Box, Dropdown, HBox, Layout

from lorakit import doctor, places
from lorakit.errors import UserError
from lorakit.places import COLAB_DRIVE, Place
from lorakit.project import Project, is_held, write_json
from widgets import card, i18n, page, preferences
from widgets.i18n import say
from widgets.preferences import Preferences

FIRST_NAME = "my-lora"
NO_NAME = re.compile(r"[\\/:*?\"<>|\x00-\x1f]|^\.|^\s|\s$|^$")  # what some disk cannot have


def open_project(name: str = "", home: str | Path | None = None) -> Project:
    """Open a project, or make it, and show its card. In Colab this mounts Google Drive, where projects live for good.

    name   of the project's folder among this machine's projects; "" the one that was opened last, or "my-lora"
    home   the project's own folder, when it is to be elsewhere

    Raises UserError for a name that cannot be a folder's.
    """
    view = display(HTML(""), display_id=True)
    place, warnings = _place(home)
    folder = place.folders[0] / Path(home).name if home else place.find(_checked(name or place.last() or FIRST_NAME))
    view.update(HTML(page.aside(say("opening {folder} …", folder=folder))))
    project, told = _opened(place, folder)
    place.remember(folder.name)
    Entry(view, project, place, warnings + told).show()
    return project


def _place(home: str | Path | None) -> tuple[Place, list[str]]:
    """Where projects are, with Drive mounted if this is Colab, and what has to be said about it."""
    place, told = places.find(os.environ), []
    wanted = Path(home).expanduser().absolute() if home else COLAB_DRIVE
    if place.name == "Colab" and COLAB_DRIVE in (wanted, *wanted.parents):
        told = _mount_drive()
        place = places.find(os.environ)
    return (replace(place, folders=(wanted.parent,), keeps="") if home else place), told


def _mount_drive() -> list[str]:
    """Mount Google Drive in Colab; why it is not there, if it is not."""
    if places.is_there(COLAB_DRIVE / "MyDrive"):
        return []
    try:
        from google.colab import drive, errors
    except ImportError:  # a terminal, or an image made from Colab's
        return [say("Google Drive can only be mounted from a Colab notebook.")]
    try:
        drive.mount(str(COLAB_DRIVE), force_remount=os.path.ismount(COLAB_DRIVE))  # a lost one is still in the way
    except (errors.Error, ValueError, OSError, RuntimeError) as error:  # MessageError when the user says no
        told = " ".join(str(error).split())[:200] or type(error).__name__
        return [say("Google Drive was not mounted ({error}). Run this cell again and allow it.", error=told)]
    return []


def _checked(name: str) -> str:
    if NO_NAME.search(name) or len(name) > 64:
        raise UserError(
            f"{name!r} cannot be a project's name: it names a folder, so use up to 64 letters, digits, spaces, '-' and "
            "'_'; for a folder elsewhere write open_project(home='/its/path')."
        )
    return name


def _opened(place: Place, folder: Path) -> tuple[Project, list[str]]:
    """The project, on the machine's own disk if `folder` is on a slow one, and what has to be said about it."""
    local = Project(place.fast / folder.name)
    home = local.home if folder == local.folder else folder
    if home is None and place.is_copied(place.folders[0]):  # it was made while Drive was not there: now it moves in
        home = place.folders[0] / folder.name
        write_json(local.home_file, {"home": str(home)})
    if home is None or not place.is_copied(home):
        project = Project(home or folder)
        project.dataset.mkdir(parents=True, exist_ok=True)
        return project, []
    if local.folder.exists() and local.home is None:
        _step_aside(local)
    from lorakit.workspace import open_home

    return open_home(home, place.fast), []


def _step_aside(local: Project) -> None:
    """A project that was made without Drive and has a namesake there gets another name, or goes if it is empty."""
    if any(is_held(run.folder / "trainer.lock") for run in local.runs()):
        raise UserError(
            f"{local.folder} was made without Drive and is being trained, and Drive has a project of that name: stop "
            "the training, then run this cell again."
        )
    if not local.runs() and not any(local.dataset.rglob("*")):
        shutil.rmtree(local.folder)
        return
    free = (local.folder.with_name(f"{local.folder.name}-{n}") for n in range(2, 1000))
    local.folder.rename(next(folder for folder in free if not folder.exists()))


@dataclass
class Entry:
    """The card of an open project, and the choices below it."""

    view: DisplayHandle
    project: Project
    place: Place
    warnings: list[str]

    def show(self) -> None:
        """Ask the doctor, which takes a moment, then draw."""
        self.chosen = preferences.read(self.project, self.place)
        self.chosen.apply()
        self._ask()
        self._draw()
        display(self._choices())

    def _ask(self) -> None:
        self.findings = doctor.examine(self.project.folder)

    def _draw(self) -> None:
        self.view.update(HTML(card.render(self.project, self.place, self.findings, self.warnings)))

    def _choices(self) -> Box:
        """Two lists; what is chosen is on disk and in force at once."""
        fixed = preferences.users_endpoint()
        language = Dropdown(
            options=[(shown, name) for name, shown in i18n.LANGUAGES.items()],
            value=self.chosen.language,
            description="Language · 语言",
            layout=Layout(width="auto", max_width="100%", margin="2px 16px 2px 0"),
            style={"description_width": "initial"},
        )
        hub = Dropdown(
            options=preferences.addresses(self.chosen.hf_endpoint),
            value=fixed or self.chosen.hf_endpoint,
            disabled=bool(fixed),
            description="Models from · 模型来源",
            layout=Layout(width="auto", max_width="100%", margin="2px 0"),
            style={"description_width": "initial"},
        )

        def changed(change: dict) -> None:
            address = self.chosen.hf_endpoint if fixed else hub.value
            self.chosen = Preferences(language.value, address)
            self.chosen.save(self.project)
            self.chosen.apply()
            if change["owner"] is hub:
                self._ask()
            self._draw()

        language.observe(changed, names="value")
        hub.observe(changed, names="value")
        return HBox([language, hub], layout=Layout(flex_flow="row wrap"))
