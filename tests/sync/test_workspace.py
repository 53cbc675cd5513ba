"""A project opened from its remote: what is complete comes here, what is not is named, and nobody's work is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from remotes import ROOT, begin, content, opened, safetensors, save_data, serving, state, whole_states

from lorakit.files import archive
from lorakit.project import Project, ProjectError
from lorakit.sync import fetch, service, workspace
from lorakit.sync.staging import OTHER, merge
from lorakit.sync.workspace import WorkspaceError, local_folder, notes


@pytest.fixture
def remote(tmp_path):
    """A home on a disk that is there."""
    (tmp_path / "drive/lorakit").mkdir(parents=True)
    return tmp_path / "drive/lorakit/mofu"


def mirrored(project: Project) -> None:
    """Copy until all is on the remote."""
    assert serving(project).wait(30) == 0
    standing = service.standing(project)
    assert (standing.files_left, standing.trouble) == (0, ""), standing


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with a run of two states and a dataset, and what the machine had that made it."""
    folder = tmp_path_factory.mktemp("made")
    remote = folder / "mofu"
    save_data(remote / "dataset")
    project = opened(remote, folder / "gone")
    run = begin(project)
    for step in (10, 20):
        state(run, step)
    run.loras.mkdir()
    for step in (10, 20):
        run.lora_file(step).write_bytes(safetensors())
    (project.folder / "settings.yaml").write_text("rank: 4\n")
    project.cache.mkdir()
    (project.cache / "ab.safetensors").write_bytes(safetensors())
    mirrored(project)
    return remote, content(project.folder)


@pytest.fixture
def trained(made, remote):
    """That home, and what the machine had that is gone."""
    shutil.copytree(made[0], remote)
    return made[1]


# ---- where it lies ---------------------------------------------------------------------------------------------------


def test_a_project_is_below_the_local_root_under_its_own_name_whenever_it_is_opened(remote, tmp_path):
    project = opened(remote, tmp_path / "local")
    assert project.folder == tmp_path / "local/mofu" and project.remote == remote
    assert opened(remote, tmp_path / "local").folder == project.folder


def test_two_homes_of_one_name_do_not_share_a_folder(remote, tmp_path):
    other = tmp_path / "other/mofu"
    other.mkdir(parents=True)
    folders = {opened(h, tmp_path / "local").folder for h in (remote, other, remote, other)}
    assert len(folders) == 2 and all(folder.name.startswith("mofu") for folder in folders)


def test_a_folder_of_that_name_that_has_no_home_is_not_touched(remote, tmp_path):
    (tmp_path / "local/mofu").mkdir(parents=True)
    (tmp_path / "local/mofu/mine.txt").write_text("mine")
    assert opened(remote, tmp_path / "local").folder != tmp_path / "local/mofu"
    assert os.listdir(tmp_path / "local/mofu") == ["mine.txt"]


def test_no_project_is_made_where_no_disk_is_mounted(tmp_path):
    with pytest.raises(WorkspaceError, match=r"there is no .*/drive\. Is the disk mounted"):
        opened(tmp_path / "drive/MyDrive/lorakit/mofu", tmp_path / "local")
    assert os.listdir(tmp_path) == []


def test_a_damaged_note_of_the_home_is_told(remote, tmp_path):
    opened(remote, tmp_path / "local").remote_file.write_text("{")
    with pytest.raises(ProjectError, match="home.json is damaged"):
        local_folder(remote, tmp_path / "local")


# ---- a new machine ---------------------------------------------------------------------------------------------------


def test_a_new_machine_has_all_that_training_needs_and_the_rest_follows(remote, tmp_path, trained):
    project = opened(remote, tmp_path / "new")
    later = {f"runs/r/lora/r-0000{step}.safetensors" for step in (10, 20)}
    old = {f"runs/r/states/00000010/{name}" for name in ("state.pt", "COMPLETE.json")}
    assert content(project.folder) == {n: c for n, c in trained.items() if n not in later | old} | {
        "home.json": project.remote_file.read_bytes()
    }
    assert list(workspace.downloading_loras(project))[-1].total == 2 * len(safetensors())
    assert later <= content(project.folder).keys() and fetch.queued(project) == {}
    assert notes(project) == () and service.standing(project).confirmed == {"r": 20}
    assert service.standing(project).files_left == 0, "what was brought is not sent back"


def test_the_mirror_brings_the_lora_files_by_itself(remote, tmp_path, trained):
    project = opened(remote, tmp_path / "new")
    mirrored(project)
    assert project.run("r").lora_steps() == [10, 20]


def test_opening_tells_how_far_it_is(remote, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(service, "start", lambda project: False)
    notes = list(workspace.opening(remote, tmp_path / "new"))
    assert {c.what for c in notes} >= {"runs/r/config.yaml", "r: state of step 20", "settings.yaml"}
    assert all(0 <= c.done <= c.total for c in notes)


def test_opening_again_copies_nothing(remote, tmp_path, trained, monkeypatch):
    project = opened(remote, tmp_path / "new")
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*") if ".sync" not in str(path)}
    monkeypatch.setattr(service, "start", lambda project: False)
    assert not [copied for copied in workspace.opening(remote, tmp_path / "new") if copied.total or copied.note]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def damaged(file: Path, how: str) -> None:
    if how == "deleted":
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes({"truncated": data[:-7], "empty": b"", "zeroed": bytes(len(data))}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "zeroed", "deleted"])
@pytest.mark.parametrize("file", ["state.pt", "COMPLETE.json"])
def test_a_damaged_newest_state_is_passed_over_for_the_one_before_and_named(file, how, remote, tmp_path, trained):
    damaged(remote / "runs/r/states/00000020" / file, how)
    project = opened(remote, tmp_path / "new")
    states = [path.name for path in project.run("r").states.iterdir()]
    assert states == ["00000010"] and (project.run("r").states / "00000010/state.pt").stat().st_size == 5_000
    assert len(notes(project)) == 1 and "The remote state of step 20 of run 'r' is skipped:" in notes(project)[0]
    assert file in notes(project)[0]


def test_a_run_goes_on_past_a_damaged_state_and_home_is_whole_again(remote, tmp_path, trained):
    damaged(remote / "runs/r/states/00000020/state.pt", "zeroed")
    project = opened(remote, tmp_path / "new")
    state(project.run("r"), 15)
    mirrored(project)
    assert whole_states(remote) == [10, 15]


@pytest.mark.parametrize("how", ["truncated", "empty", "deleted"])
def test_a_damaged_lora_file_is_named_and_left_out(how, remote, tmp_path, trained):
    damaged(remote / "runs/r/lora/r-000020.safetensors", how)
    project = opened(remote, tmp_path / "new")
    notes = [copied.note for copied in workspace.downloading_loras(project) if copied.note]
    assert project.run("r").lora_steps() == [10]
    if how == "deleted":
        assert notes == [], "what is not there is not missed"
    else:
        assert len(notes) == 1 and str(remote / "runs/r/lora/r-000020.safetensors") in notes[0]


@pytest.mark.parametrize("how", ["truncated", "empty", "zeroed", "deleted"])
@pytest.mark.parametrize("which", ["cache-all", "dataset-pictures", "dataset-texts"])
def test_a_damaged_archive_is_named_and_made_again(which, how, remote, tmp_path, trained):
    damaged(next((remote / "archives").glob(f"{which}-*.tar")), how)
    project = opened(remote, tmp_path / "new")
    assert any("is damaged or missing" in note for note in notes(project))
    assert content(project.dataset) == content(remote / "dataset"), "the folder at home has it, too"
    mirrored(project)
    project = opened(remote, tmp_path / "newer")
    assert notes(project) == () and content(project.dataset) == content(remote / "dataset")


def test_opening_that_was_cut_is_gone_on_with(remote, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(service, "start", lambda project: False)
    count = len(list(workspace.opening(remote, tmp_path / "whole")))
    for cut in range(1, count, 4):
        iterator = workspace.opening(remote, tmp_path / str(cut))
        for _ in range(cut):
            next(iterator)
        iterator.close()
        again = content(opened(remote, tmp_path / str(cut)).folder)
        assert again == content(tmp_path / "whole/mofu") | {"home.json": again["home.json"]}


def test_a_disk_that_fails_meanwhile_is_one_sentence(remote, tmp_path, trained, monkeypatch):
    def gone(*_):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(workspace, "copied_file", gone)
    with pytest.raises(
        WorkspaceError, match="failed while the project was opened .*open the project again to continue"
    ):
        opened(remote, tmp_path / "new")


# ---- both have worked ------------------------------------------------------------------------------------------------


def test_work_that_home_does_not_have_is_kept_and_sent(remote, tmp_path, trained):
    project = opened(remote, tmp_path / "new")
    state(project.run("r"), 30)
    again = opened(remote, tmp_path / "new")
    assert (again.run("r").states / "00000030/state.pt").exists() and service.standing(again).files_left == 2
    mirrored(again)
    assert whole_states(remote) == [20, 30]


def test_work_of_another_machine_is_brought(remote, tmp_path, trained):
    one, two = opened(remote, tmp_path / "one"), opened(remote, tmp_path / "two")
    state(one.run("r"), 30)
    mirrored(one)
    two = opened(remote, tmp_path / "two")
    assert content(two.run("r").states)["00000030/state.pt"] == content(one.run("r").states)["00000030/state.pt"]
    assert two.run("r").log.read_bytes() == one.run("r").log.read_bytes()


def test_a_run_that_went_on_on_two_machines_is_kept_twice(remote, tmp_path, trained):
    one, two = opened(remote, tmp_path / "one"), opened(remote, tmp_path / "two")
    state(one.run("r"), 30)
    state(two.run("r"), 25)
    mirrored(one)
    two = opened(remote, tmp_path / "two")
    assert [run.name for run in two.runs()] == ["r", "r.home"]
    assert (two.run("r").states / "00000025").exists() and (two.run("r.home").states / "00000030").exists()
    assert "differs here and in the remote copy" in notes(two)[0]


def test_three_way_joins():
    base = {"same": "1", "ours": "1", "theirs": "1", "both": "1", "gone here": "1", "gone there": "1", "odd": "1"}
    ours = {"same": "1", "ours": "2", "theirs": "1", "both": "2", "gone there": "1", "new": "3", "odd": "9"}
    theirs = {"same": "1", "ours": "1", "theirs": "2", "both": "3", "gone here": "1", "their new": "4"}
    result, both = merge(base, ours, theirs)
    assert both == ["both"]
    assert result == {
        "same": "1", "ours": "2", "theirs": "2", "both": "2", "both" + OTHER: "3", "new": "3", "their new": "4",
        "odd": "9",
    }  # fmt: skip


# ---- datasets -------------------------------------------------------------------------------------------------------


def test_what_the_user_does_at_home_by_hand_is_taken(remote, tmp_path, trained):
    folder = remote / "dataset/2_mofu"
    (folder / "000.txt").write_text("another")
    (folder / "new.txt").write_text("new")
    (folder / "001.txt").unlink()
    for root in ("new", "newer"):
        project = opened(remote, tmp_path / root)
        assert content(project.dataset) == content(remote / "dataset")
        mirrored(project)


def test_captions_written_here_win_over_older_ones_at_home(remote, tmp_path, trained):
    project = opened(remote, tmp_path / "new")
    (project.dataset / "2_mofu/000.txt").write_text("by hand")
    (project.dataset / "2_mofu/003.png").unlink()
    (project.dataset / "2_mofu/more.txt").write_text("more")
    mirrored(opened(remote, tmp_path / "new"))
    images = next((remote / "archives").glob("dataset-pictures-*"))
    other = opened(remote, tmp_path / "newer")
    assert content(other.dataset) == content(project.dataset)
    assert content(other.dataset)["2_mofu/000.txt"] == b"by hand" and images.exists() and notes(other) == ()


def test_a_corrected_caption_sends_no_image_again(remote, tmp_path, trained):
    project = opened(remote, tmp_path / "new")
    images = next((remote / "archives").glob("dataset-pictures-*"))
    before = (images, images.stat().st_mtime_ns)
    (project.dataset / "2_mofu/000.txt").write_text("by hand")
    mirrored(project)
    assert [(p, p.stat().st_mtime_ns) for p in (remote / "archives").glob("dataset-pictures-*")] == [before]
    assert len(list((remote / "archives").glob("dataset-texts-*"))) == 1, "the old one goes"


def test_a_caption_changed_on_both_sides_is_kept_twice_and_named(remote, tmp_path, trained):
    project = opened(remote, tmp_path / "new")
    (project.dataset / "2_mofu/000.txt").write_text("by hand")
    (remote / "dataset/2_mofu/000.txt").write_text("at home, by hand, too")
    project = opened(remote, tmp_path / "new")
    assert (project.dataset / "2_mofu/000.txt").read_text() == "by hand"
    assert (project.dataset / f"2_mofu/000.txt{OTHER}").read_text() == "at home, by hand, too"
    assert "was changed here and in the remote copy" in notes(project)[0]
    mirrored(project)
    other = opened(remote, tmp_path / "newer")
    assert content(other.dataset) == content(project.dataset) and notes(other) == ()


def test_a_caption_changed_on_two_machines_is_kept_twice(remote, tmp_path, trained):
    one, two = opened(remote, tmp_path / "one"), opened(remote, tmp_path / "two")
    (one.dataset / "2_mofu/000.txt").write_text("one")
    (two.dataset / "2_mofu/000.txt").write_text("two")
    mirrored(one)
    two = opened(remote, tmp_path / "two")
    found = content(two.dataset)
    assert (found["2_mofu/000.txt"], found[f"2_mofu/000.txt{OTHER}"]) == (b"two", b"one")


def test_the_folder_at_home_may_go_once_it_is_packed(remote, tmp_path, trained):
    before = content(remote / "dataset")
    shutil.rmtree(remote / "dataset")
    project = opened(remote, tmp_path / "new")
    assert content(project.dataset) == before
    assert "is empty or gone; what its archive holds is kept" in notes(project)[0]


@pytest.mark.parametrize("inside", ["", "dataset/", "my images/"])
def test_a_zip_at_home_is_a_data_set(inside, remote, tmp_path):
    remote.mkdir()
    files = save_data(tmp_path / "in")
    with zipfile.ZipFile(remote / "dataset.zip", "w") as opened_zip:
        for name, data in files.items():
            opened_zip.writestr(inside + name, data)
    project = opened(remote, tmp_path / "new")
    assert content(project.dataset) == files
    mirrored(project)
    assert content(opened(remote, tmp_path / "newer").dataset) == files
    assert list(workspace.notes(project)) == []


def test_a_replaced_zip_replaces_its_files_and_no_caption_written_here(remote, tmp_path):
    remote.mkdir()
    for number, captions in enumerate(({"a": "1", "b": "1", "c": "1"}, {"a": "2", "b": "2"})):
        with zipfile.ZipFile(remote / "dataset.zip", "w") as opened_zip:
            for name, text in captions.items():
                opened_zip.writestr(f"{name}.txt", text)
                opened_zip.writestr("x.png", bytes(9))
        project = opened(remote, tmp_path / "local")
        if number == 0:
            (project.dataset / "b.txt").write_text("by hand")
            mirrored(project)
    found = content(project.dataset)
    assert found == {"a.txt": b"2", "b.txt": b"by hand", f"b.txt{OTHER}": b"2", "x.png": bytes(9)}


def test_a_damaged_zip_is_named_and_the_rest_opens(remote, tmp_path):
    save_data(remote / "dataset")
    (remote / "dataset.zip").write_bytes(b"PK\x03\x04 and no more")
    project = opened(remote, tmp_path / "new")
    assert content(project.dataset) == content(remote / "dataset")
    assert f"{remote}/dataset.zip is neither a zip nor a tar archive" in notes(project)[0]


def test_large_files_and_foreign_folders_stay_at_home_and_are_named(remote, tmp_path, monkeypatch):
    (remote / "images for later").mkdir(parents=True)
    (remote / "base.safetensors").write_bytes(bytes(2000))
    (remote / "preferences.json").write_text("{}")
    monkeypatch.setattr(workspace, "SMALL", 1000)
    project = opened(remote, tmp_path / "new")
    assert sorted(content(project.folder)) == ["home.json", "preferences.json"]
    assert len(notes(project)) == 2 and all("is not downloaded" in note for note in notes(project))


def test_a_setting_changed_here_is_not_overwritten_by_homes(remote, tmp_path, trained):
    project = opened(remote, tmp_path / "new")
    settings = project.folder / "settings.yaml"
    (remote / "settings.yaml").write_text("rank: 8\n")
    opened(remote, tmp_path / "new")
    assert settings.read_text() == "rank: 8\n", "unchanged here"
    settings.write_text("rank: 16\n")
    (remote / "settings.yaml").write_text("rank: 32\n")
    opened(remote, tmp_path / "new")
    assert settings.read_text() == "rank: 16\n"


def test_opening_and_mirroring_load_nothing_heavy():
    code = (
        "import sys, lorakit.sync.workspace, lorakit.sync.service; print(*{'torch', 'numpy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_archives_of_ours_are_plain_tars(remote, tmp_path, trained):
    file = next((remote / "archives").glob("dataset-pictures-*"))
    list(archive.unpack(file, tmp_path / "out"))
    assert content(tmp_path / "out") == {n: c for n, c in content(remote / "dataset").items() if n.endswith(".png")}
