"""The first cell: opens the right project on every machine, tells what it is, and keeps what was chosen."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import types
from dataclasses import asdict
from pathlib import Path

import pytest
from sessions import new_run, until
from tiny import save_images, save_sd15

from lorakit import doctor
from lorakit.doctor import CheckResult
from lorakit.errors import UserError
from lorakit.events import Finished, Stepped
from lorakit.files import write_json
from lorakit.project import platforms
from lorakit.project.platforms import FOLDER
from lorakit.sync import service
from lorakit.sync.staging import Copied
from lorakit.training.loop import train
from widgets import i18n
from widgets.project import opening as entry
from widgets.project import preferences
from widgets.project.closing import close_project

ROOT = Path(__file__).parents[2]
WELL = [CheckResult("torch", "2.13"), CheckResult("disk", "50 GB free")]
NO_GPU = doctor.failed("GPU", "none", "choose a {gpu}", gpu="T4 <GPU>")


class View:
    """What a cell shows in one place: the newest of it."""

    shown: list[str] = []

    def display(self, content):
        self.shown.append(content.data)

    update = display


class Cell:
    """What the first cell shows, and the widgets below."""

    widgets: list = []

    @property
    def html(self) -> str:
        return View.shown[-1]

    def choices(self):
        return self.widgets[-1].children


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A new kernel on a machine of the user's own, with a doctor that is quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_ENDPOINT", "LANG", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platforms, "find", functools.partial(platforms.find, root=tmp_path))
    monkeypatch.setattr(preferences, "_set_here", {})
    monkeypatch.setattr(doctor, "check_machine", lambda folder: [*WELL, NO_GPU])
    monkeypatch.setattr(entry, "DisplayHandle", View)
    monkeypatch.setattr(View, "shown", [])
    monkeypatch.setattr(Cell, "widgets", [])
    monkeypatch.setattr(entry, "show", Cell.widgets.append)
    monkeypatch.setattr(service, "start", lambda project: False)
    i18n.use("en")
    yield Cell()
    i18n.use("en")
    os.environ.pop("HF_ENDPOINT", None)


# ---- which project


def test_the_first_project_is_made_beside_the_notebook_and_opened_again(cell, tmp_path):
    project = entry.open_project()
    assert project.folder == tmp_path / FOLDER / "my-lora" and project.dataset.is_dir() and project.remote is None
    assert entry.open_project().folder == project.folder


def test_without_a_name_the_project_that_was_used_last_is_opened(cell):
    for name in ("小狐狸", "b c"):
        entry.open_project(name)
    assert entry.open_project().folder.name == "b c"
    entry.open_project("小狐狸")
    assert entry.open_project().folder.name == "小狐狸"
    assert "Other projects here: b c. Open one with open_project(&quot;b c&quot;)." in cell.html


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", " a", "a ", "a:b", "x" * 65, "a\n", "C:\\x"])
def test_a_name_that_cannot_be_a_folders_is_refused(name, cell):
    with pytest.raises(UserError, match=r"cannot be a project's name.*open_project\(remote="):
        entry.open_project(name)


def test_a_folder_elsewhere_is_the_project_itself_and_nothing_is_left_beside_it(cell, tmp_path):
    project = entry.open_project(remote="elsewhere/mine")
    assert project.folder == tmp_path / "elsewhere" / "mine"
    assert os.listdir(tmp_path / "elsewhere") == ["mine"]
    assert not (tmp_path / FOLDER).exists()


# ---- the card


def test_the_card_tells_what_the_project_holds_and_where(cell, tmp_path, base):
    run = new_run(tmp_path / FOLDER / "fox", base, {"loop": {"epochs": 2}})
    until(run, lambda event: isinstance(event, Stepped))
    entry.open_project("fox")
    assert str(tmp_path / FOLDER / "fox") in cell.html
    assert "7 images" in cell.html and "r: interrupted, step 1 of 8" in cell.html


def test_an_empty_project_says_where_images_go(cell, tmp_path):
    entry.open_project("new")
    assert f"No images yet: put them into {tmp_path / FOLDER / 'new' / 'dataset'} · no runs yet" in cell.html


def test_problems_stand_open_with_their_cure_and_what_is_well_is_folded(cell):
    entry.open_project()
    visible, folded = cell.html.split("<details")
    assert "GPU: none" in visible and "choose a T4 &lt;GPU&gt;" in visible
    assert "2 checks passed" in folded and "50 GB free" in folded and "GPU" not in folded


def test_the_card_needs_no_style_sheet_script_or_drawing(cell):
    entry.open_project()
    assert not any(tag in cell.html for tag in ("<style", "<script", "<svg", "background"))


# ---- choices


def test_a_chosen_language_is_spoken_written_at_once_and_spoken_next_time(cell):
    project = entry.open_project()
    language, _ = cell.choices()
    language.value = "zh"
    assert "2 项检查通过" in cell.html and "显卡：没有" in cell.html
    assert json.loads((project.folder / "preferences.json").read_text()) == {"language": "zh", "hf_endpoint": ""}
    i18n.use("en")
    entry.open_project()
    assert "2 项检查通过" in cell.html and cell.choices()[0].value == "zh"


@pytest.mark.parametrize(
    ("variables", "language"), [({"LANG": "zh_CN.UTF-8"}, "zh"), ({"AutoDLContainerUUID": "1"}, "zh"), ({}, "en")]
)
def test_a_new_project_speaks_the_machines_language(variables, language, cell, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "root" / "autodl-tmp").mkdir(parents=True)
    monkeypatch.setattr(platforms, "MACHINES", [m for m in platforms.MACHINES if set(m.signs) & set(variables)])
    entry.open_project()
    assert i18n.language() == language


def test_a_chosen_mirror_is_in_force_here_and_in_what_is_started_and_is_taken_back(cell, monkeypatch):
    addresses = []
    monkeypatch.setattr(doctor, "check_machine", lambda folder: addresses.append(os.environ.get("HF_ENDPOINT")) or WELL)
    project = entry.open_project()
    cell.choices()[1].value = preferences.MIRROR
    assert os.environ["HF_ENDPOINT"] == preferences.MIRROR and addresses == [None, preferences.MIRROR]
    assert json.loads((project.folder / "preferences.json").read_text())["hf_endpoint"] == preferences.MIRROR
    entry.open_project()
    assert os.environ["HF_ENDPOINT"] == preferences.MIRROR
    cell.choices()[1].value = ""
    assert "HF_ENDPOINT" not in os.environ


def test_the_users_own_endpoint_goes_before_any_choice(cell, monkeypatch):
    write_json(entry.open_project().folder / "preferences.json", {"hf_endpoint": preferences.MIRROR})
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    entry.open_project()
    hub = cell.choices()[1]
    assert os.environ["HF_ENDPOINT"] == "https://hub.example" == hub.value and hub.disabled


def test_autodls_network_switch_sets_its_proxies_and_is_switched_off_again(cell, tmp_path, monkeypatch):
    switch = tmp_path / "turbo"
    switch.write_text("export http_proxy=http://10.0.0.1:12\n")
    monkeypatch.setattr(platforms, "SWITCH", switch)
    monkeypatch.setattr(platforms, "network_switch", functools.partial(platforms.network_switch, switch))
    monkeypatch.delenv("http_proxy", raising=False)
    entry.open_project()
    cell.choices()[1].value = preferences.SWITCH
    assert os.environ["http_proxy"] == "http://10.0.0.1:12" and "HF_ENDPOINT" not in os.environ
    cell.choices()[1].value = ""
    assert "http_proxy" not in os.environ


@pytest.mark.parametrize("text", ["", "[]", '{"language": [], "hf_endpoint": []}', '{"language": "fr"}'])
def test_damaged_preferences_stop_nothing(text, cell):
    project = entry.open_project()
    (project.folder / "preferences.json").write_text(text)
    entry.open_project()
    assert i18n.language() == "en" and cell.choices()[1].value == ""


# ---- Colab and Drive


class Refused(Exception):
    """Like Colab's MessageError."""


@pytest.fixture
def colab(cell, tmp_path, monkeypatch):
    """A Colab machine; `colab.answer` says what the user does when asked for Drive."""
    content, drive = tmp_path / "content", tmp_path / "content" / "drive"
    content.mkdir()
    cell.answer, cell.drive, cell.disk, cell.mounts = "yes", drive / "MyDrive" / FOLDER, content / FOLDER, []

    def mount(path, force_remount):
        cell.mounts.append(path)
        if cell.answer == "no":
            raise Refused("Error: credential propagation was unsuccessful")
        (drive / "MyDrive").mkdir(parents=True)

    modules = {
        "google": types.ModuleType("google"),
        "google.colab": types.ModuleType("google.colab"),
        "google.colab.drive": types.SimpleNamespace(mount=mount),
        "google.colab.errors": types.SimpleNamespace(Error=Refused),
    }
    modules["google.colab"].drive = modules["google.colab.drive"]
    modules["google.colab"].errors = modules["google.colab.errors"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260819")
    monkeypatch.setattr(entry, "COLAB_DRIVE", drive)
    monkeypatch.setattr(platforms, "is_slow", lambda path, *_: drive in path.parents)
    return cell


def test_in_colab_drive_is_mounted_and_is_the_projects_home(colab):
    project = entry.open_project()
    assert (project.folder, project.remote) == (colab.disk / "my-lora", colab.drive / "my-lora")
    assert "Google Drive keeps this folder." in colab.html and "lost" not in colab.html
    assert entry.open_project().folder == project.folder and len(colab.mounts) == 1


def test_a_new_machine_opens_the_project_that_was_used_last_on_drive(colab):
    for name in ("fox", "owl", "fox"):
        entry.open_project(name)
    subprocess.run(["rm", "-r", colab.disk], check=True)
    project = entry.open_project()
    assert (project.folder, project.remote) == (colab.disk / "fox", colab.drive / "fox")


def test_who_does_not_give_drive_is_told_that_all_is_lost_and_goes_on(colab):
    colab.answer = "no"
    project = entry.open_project()
    assert (project.folder, project.remote) == (colab.disk / "my-lora", None)
    assert "Google Drive was not mounted (Error: credential propagation was unsuccessful)." in colab.html
    assert "all of it is lost when the session ends" in colab.html


def test_what_was_made_without_drive_moves_there_when_it_is_mounted(colab):
    colab.answer = "no"
    save_images(entry.open_project().dataset)
    colab.answer = "yes"
    project = entry.open_project()
    assert (project.folder, project.remote) == (colab.disk / "my-lora", colab.drive / "my-lora")
    assert "7 images" in colab.html and "lost" not in colab.html


def test_a_namesake_made_without_drive_keeps_its_files_and_is_told_of(colab):
    save_images(colab.disk / "my-lora" / "dataset")
    (colab.drive / "my-lora" / "dataset").mkdir(parents=True)
    project = entry.open_project()
    assert project.remote == colab.drive / "my-lora" and project.folder != colab.disk / "my-lora"
    assert f"{colab.disk / 'my-lora'} is another project of that name, created without Drive." in colab.html
    (colab.disk / "my-lora").rename(colab.disk / "other")
    assert entry.open_project("other").remote == colab.drive / "other" and "7 images" in colab.html


def test_when_drive_is_lost_the_copy_on_this_machine_is_opened(colab):
    project = entry.open_project()
    save_images(project.dataset)
    subprocess.run(["rm", "-r", colab.drive.parents[1]], check=True)
    colab.answer = "no"
    assert entry.open_project().folder == project.folder
    assert "cannot be reached" in colab.html and "7 images" in colab.html


def test_what_is_brought_is_told_once_a_second(colab, monkeypatch):
    entry.open_project()
    monkeypatch.setattr(entry, "opening", lambda *_: (Copied("images", done, 10**6) for done in range(1000)))
    entry.open_project()
    assert sum("downloading images" in shown for shown in View.shown) in (1, 2)


def test_what_copies_lack_is_told_folded(colab):
    project = entry.open_project()
    assert "notes on the copies" not in colab.html
    write_json(
        project.sync / "standing.json",
        asdict(service.Standing({}, 0, 0, "", 0.0, 1.0, False, notes=("runs/a/x.safetensors is <left out>",))),
    )
    entry.open_project()
    assert f"1 notes on the remote copy in {project.remote}" in colab.html
    assert "&lt;left out&gt;" in colab.html.rpartition("<details")[2]


@pytest.mark.parametrize(("answer", "is_lost"), [("no", True), ("yes", False)])
def test_closing_a_project_that_nothing_keeps_says_so(answer, is_lost, colab, tmp_path, monkeypatch):
    colab.answer = answer
    project = entry.open_project() if is_lost else entry.open_project(remote=tmp_path / "mine")
    monkeypatch.setattr("IPython.display.display", lambda content: View().display(content))
    close_project(project)
    assert "no remote copy" in colab.html and ("all of it is lost" in colab.html) == is_lost


def test_a_folder_of_the_machine_itself_asks_for_no_drive(colab, tmp_path):
    project = entry.open_project(remote=tmp_path / "content" / "mine")
    assert colab.mounts == [] and project.remote is None


# ---- the network


def test_with_all_files_local_nothing_but_this_machine_is_called(cell, tmp_path, base, monkeypatch):
    monkeypatch.undo()  # a real doctor and a real view
    monkeypatch.delenv("HF_ENDPOINT")
    called, connect = [], socket.socket.connect

    def watched(self, address):
        if self.family == socket.AF_INET and not str(address[0]).startswith("127."):
            called.append(address)
            raise OSError(101, "Network is unreachable")
        return connect(self, address)

    def resolve(host, *args, **kwargs):
        called.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    project = entry.open_project(remote=tmp_path / "offline")
    assert set(called) <= {"huggingface.co"}, "the doctor asks whether the hub is there, and nothing else does"
    called.clear()
    save_images(project.dataset)
    run = new_run(project.folder, base, {"loop": {"epochs": 1}})
    assert isinstance(list(train(run))[-1], Finished) and called == []


# ---- a real kernel


def test_the_first_cell_is_quick_in_a_kernel_imports_no_torch_and_says_errors_plainly(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    from test_packaging import first_cell

    code = [
        f"{first_cell.first_cell('')}\nfrom widgets import open_project\nproject = open_project()",
        "import sys\nprint('torch' in sys.modules, project.folder)",
        "import time; begin = time.monotonic(); open_project(); took = time.monotonic() - begin",
        "print(f'{took:.3f}')",
        "open_project('../x')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code])
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=60, allow_errors=True, resources=where).execute()
    assert notebook.cells[1].outputs[0].text.strip() == f"False {tmp_path / FOLDER / 'my-lora'}"
    assert float(notebook.cells[3].outputs[0].text) < 1
    shown = [output.data.get("text/html", "") for output in notebook.cells[0].outputs if "data" in output]
    assert any("checks passed" in html for html in shown)
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.outputs)
    refused = "".join(output.data.get("text/html", "") for output in notebook.cells[4].outputs)
    assert "cannot be a project&#x27;s name" in refused
