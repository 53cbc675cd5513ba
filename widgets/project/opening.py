"""The cell that every notebook begins with: opens the project and shows what it is."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from IPython.display import HTML, DisplayHandle
from ipywidgets import Box, Dropdown, HBox, Layout

from lorakit import doctor
from lorakit.errors import UserError
from lorakit.files import write_json
from lorakit.project import Project, platforms
from lorakit.project.platforms import COLAB_DRIVE, Place
from lorakit.sync.workspace import local_folder, notes, opening
from widgets import i18n, page
from widgets.i18n import say
from widgets.plain import plain_errors, show
from widgets.project import preferences, summary
from widgets.project.labels import labelled
from widgets.project.preferences import Preferences

FIRST_NAME = "my-lora"
REDRAW = 1.0  # s
# Names that a disk of some system cannot have.
NO_NAME = re.compile(r"[\\/:*?\"<>|\x00-\x1f]|^\.|^\s|\s$|^$")


def open_project(name: str = "", remote: str | Path | None = None) -> Project:
    """Open a project, or create it, and show its summary. In Colab this mounts Google Drive, where projects are kept.

    name    of the project's folder among this machine's projects; "" the one that was opened last, or "my-lora"
    remote  folder of the project's remote copy (e.g. on Google Drive), or of the project itself on a fast disk

    From here on an error for people is a sentence in this notebook. Raises UserError for a name that cannot be a
    folder's.
    """
    # First of all, so that an error of this very cell is a sentence, too.
    plain_errors(labelled)
    view = DisplayHandle()
    view.display(HTML(""))
    place, warnings = _place(remote)
    folder = Path(remote).absolute() if remote else place.find(_checked(name or place.last() or FIRST_NAME))
    view.update(HTML(page.aside(say("opening {folder} …", folder=folder))))
    project, further = _opened(place, folder, view)
    if not remote:
        place.remember(folder.name)
    Entry(view, project, place, warnings + further).show()
    return project


def _place(remote: str | Path | None) -> tuple[Place, list[str]]:
    """Where projects are, with Drive mounted if this is Colab, and warnings about it."""
    place, warnings = platforms.find(os.environ), []
    target = Path(remote).absolute() if remote else COLAB_DRIVE
    if place.name == "Colab" and COLAB_DRIVE in (target, *target.parents):
        warnings = _mount_drive()
        # Looked up again: with Drive mounted projects are in another folder.
        place = platforms.find(os.environ)
    return (replace(place, keeps="") if remote else place), warnings


def _mount_drive() -> list[str]:
    """Mount Google Drive in Colab; why it is not there, if it is not."""
    if platforms.is_there(COLAB_DRIVE / "MyDrive"):
        return []
    try:
        from google.colab import drive, errors
    except ImportError:
        # A terminal in Colab, or a container made from its image.
        return [say("Google Drive can only be mounted from a Colab notebook.")]
    try:
        # Forced where a mount that stopped working is still in the way.
        drive.mount(str(COLAB_DRIVE), force_remount=os.path.ismount(COLAB_DRIVE))
    except (errors.Error, ValueError, OSError, RuntimeError) as error:
        # errors.MessageError is raised when the user does not allow it.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return [say("Google Drive was not mounted ({error}). Run this cell again and allow it.", error=reason)]
    return []


def _checked(name: str) -> str:
    if NO_NAME.search(name) or len(name) > 64:
        raise UserError(
            say(
                "{name} cannot be a project's name: it names a folder, so use up to 64 letters, digits, spaces, '-' "
                "and '_'; for a folder elsewhere write open_project(remote='/its/path').",
                name=repr(name),
            )
        )
    return name


def _opened(place: Place, folder: Path, view: DisplayHandle) -> tuple[Project, list[str]]:
    """The project at `folder`, downloaded to this machine's disk if its remote copy is on a slow one; and warnings."""
    remote = _remote(place, folder)
    if remote is None:
        project = Project(folder)
        project.dataset.mkdir(parents=True, exist_ok=True)
        return project, []
    project = Project(local_folder(remote, place.fast))
    if project.remote and not platforms.is_there(remote):
        text = say(
            "{remote} cannot be reached. This is the copy on this machine's disk; it is uploaded later.", remote=remote
        )
        return project, [text]
    # 0: the first progress is shown at once.
    drawn = 0.0
    for copied in opening(remote, place.fast):
        if time.monotonic() - drawn >= REDRAW:
            done = f"{copied.done / 1e6:.0f} / {copied.total / 1e6:.0f} MB" if copied.total else ""
            view.update(
                HTML(page.aside(say("downloading {what} from {remote} …", what=f"{copied.what} {done}", remote=remote)))
            )
            drawn = time.monotonic()
    project.dataset.mkdir(exist_ok=True)
    return project, [*notes(project), *_namesake(place, project)]


def _remote(place: Place, folder: Path) -> Path | None:
    """Folder of the remote copy of the project at `folder`, None if it has none.

    A project created on this machine's disk while Drive was not mounted gets its remote copy on Drive.
    """
    if folder.parent != place.fast:
        return folder if place.is_copied(folder) else None
    local, remote = Project(folder), place.folders[0] / folder.name
    if local.remote is None and folder.exists() and place.is_copied(remote) and not platforms.is_there(remote):
        # "home" is the stored name of the remote copy, which earlier versions wrote.
        write_json(local.remote_file, {"home": str(remote)})
    return local.remote


def _namesake(place: Place, project: Project) -> list[str]:
    """A warning of another project of this name, which was created while Drive was not mounted."""
    other = Project(place.fast / project.remote.name)
    if other.remote or not other.runs() and not any(other.dataset.rglob("*")):
        return []
    return [
        say(
            "{folder} is another project of that name, created without Drive. Rename that folder and open it, "
            "then it moves to Drive.",
            folder=other.folder,
        )
    ]


@dataclass
class Entry:
    """The summary of an open project, and the choices below it."""

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
        show(self._choices())

    def _ask(self) -> None:
        self.findings = doctor.check_machine(self.project.folder)

    def _draw(self) -> None:
        self.view.update(HTML(summary.render(self.project, self.place, self.findings, self.warnings)))

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
