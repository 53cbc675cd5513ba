"""Getting images in: whatever they come in arrives whole, overwrites nothing, and what is left out is told."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from remotes import content

from lorakit.data.scan import Note
from lorakit.files.archive import ArchiveError
from lorakit.prepare.intake import USED, IntakeError, import_images
from lorakit.project import Project

PILE = {
    "images/a.png": b"a",
    "images/a.txt": b"mofu, hat",
    "images/b.JPG": b"b",
    "images/b.caption": "帽子".encode(),
    "images/meta_cap.json": b"{}",
    "images/sub/c.webp": b"c",
}
LONE = {"10_mofu/a.png": b"a", "10_mofu/a.txt": b"mofu"}
KOHYA = {"10_mofu/a.png": b"a", "10_mofu/a.txt": b"mofu", "reg/1_girl/r.png": b"r", "captions.json": b"{}"}
USELESS = {"images/.DS_Store": b"x", "images/readme.md": b"x", "images/more.zip": b"x", "__MACOSX/._a.png": b"x"}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(file: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return file


def tarred(file: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as opened:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            opened.addfile(entry, io.BytesIO(data))
    return file


def given(how: str, folder: Path, files: dict[str, bytes]):
    """The same files as an archive, as a folder, or as an upload."""
    if how == "upload":
        return {"pile.zip": zipped(folder / "pile.zip", files).read_bytes()}
    makers = {"zip": zipped, "tar": tarred, "folder": fill}
    return makers[how](folder / {"zip": "pile.zip", "tar": "pile.tgz", "folder": "pile"}[how], files)


def notes(events) -> dict[str, list[str]]:
    """The notes by kind, each as a sentence."""
    found: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, Note):
            found.setdefault(event.kind, []).append(str(event))
    return found


def dataset(project: Project) -> dict[str, bytes]:
    there = content(project.dataset)
    assert [path.name for path in project.dataset.iterdir() if path.name.startswith(".")] == []
    return there


HOW = pytest.mark.parametrize("how", ["zip", "tar", "folder", "upload"])


@HOW
def test_a_pile_arrives_whole_without_the_folder_that_holds_it_all_and_what_is_left_out_is_told(how, project, tmp_path):
    noted = notes(import_images(project, given(how, tmp_path, {**PILE, **USELESS})))
    assert dataset(project) == {name.removeprefix("images/"): data for name, data in PILE.items()}
    assert len(noted["left out"]) == len(USELESS)
    assert all(any(Path(name).name in line for line in noted["left out"]) for name in ("readme.md", "more.zip"))
    assert noted["added"][0] == "dataset: 2 images added, 3 captions and metadata added."


@HOW
@pytest.mark.parametrize("files", [KOHYA, LONE, {"reg/1_girl/r.png": b"r"}], ids=["all", "lone", "reg"])
def test_kohyas_folders_keep_their_meaning(how, files, project, tmp_path):
    list(import_images(project, given(how, tmp_path, files)))
    assert dataset(project) == files


@HOW
def test_again_changes_nothing_and_says_so(how, project, tmp_path):
    source = given(how, tmp_path, PILE)
    list(import_images(project, source))
    before = {path: path.stat().st_mtime_ns for path in project.dataset.rglob("*")}
    assert notes(import_images(project, source))["added"][0].endswith("5 files were there already.")
    assert {path: path.stat().st_mtime_ns for path in project.dataset.rglob("*")} == before


def test_a_folder_that_is_a_concept_itself_stays_one_unless_another_is_named(project, tmp_path):
    source = fill(tmp_path / "5_cat", {"a.png": b"a"})
    list(import_images(project, source))
    list(import_images(project, source, "dog", 2))
    assert dataset(project) == {"5_cat/a.png": b"a", "2_dog/a.png": b"a"}


def test_into_a_concept_folder_nothing_lies_deeper_and_same_names_part(project, tmp_path):
    source = fill(tmp_path / "x", {"1/a.png": b"1", "1/a.txt": b"one", "2/a.png": b"2", "2/a.txt": b"two"})
    for _ in range(2):
        noted = notes(import_images(project, source, "mofu", 10))
        assert dataset(project) == {
            "10_mofu/a.png": b"1",
            "10_mofu/a.txt": b"one",
            "10_mofu/a-2.png": b"2",
            "10_mofu/a-2.txt": b"two",
        }
    assert "renamed" not in noted, "the second time all is there"


@pytest.mark.parametrize(
    "into, repeats, folder",
    [
        ("mofu", 0, "7_mofu"),  # as it is there
        ("mofu", 3, "3_mofu"),
        ("9_mofu", 0, "9_mofu"),
        ("9_mofu", 2, "2_mofu"),
        ("neu", 0, "1_neu"),
        ("reg/girl", 1, "reg/1_girl"),
        ("20240131_beach", 0, "1_20240131_beach"),  # a date
    ],
)
def test_a_concept_folder_is_named_by_its_repeats(project, tmp_path, into, repeats, folder):
    (project.dataset / "7_mofu").mkdir(parents=True)
    list(import_images(project, fill(tmp_path / "x", {"a.png": b"a"}), into, repeats))
    assert (project.dataset / folder / "a.png").read_bytes() == b"a"


@pytest.mark.parametrize(
    "into, repeats", [("../x", 0), ("a/b", 0), (".x", 1), ("a\\b", 1), ("a\0", 1), ("x", -1), ("", 3)]
)
def test_what_cannot_be_a_concept_folder_is_refused(project, tmp_path, into, repeats):
    with pytest.raises(IntakeError):
        list(import_images(project, fill(tmp_path / "x", {"a.png": b"a"}), into, repeats))
    assert not project.folder.exists()


def test_another_image_of_the_same_name_gets_a_new_name_together_with_its_caption(project, tmp_path):
    fill(project.dataset, {"a.png": b"mine", "a.txt": b"my caption"})
    noted = notes(import_images(project, fill(tmp_path / "x", {"a.png": b"other", "a.txt": b"its caption"})))
    mine, other = {"a.png": b"mine", "a.txt": b"my caption"}, {"a-2.png": b"other", "a-2.txt": b"its caption"}
    assert dataset(project) == mine | other
    assert len(noted["renamed"]) == 2 and "a-2.png" in noted["renamed"][0]


def test_an_image_does_not_come_to_share_the_caption_of_another(project, tmp_path):
    fill(project.dataset, {"a.jpg": b"mine", "a.txt": b"my caption", "b.txt": b"of an image that is gone"})
    list(import_images(project, fill(tmp_path / "x", {"a.png": b"other", "b.png": b"b", "b.txt": b"of b"})))
    assert dataset(project) == {
        "a.jpg": b"mine",
        "a.txt": b"my caption",
        "a-2.png": b"other",
        "b.txt": b"of an image that is gone",
        "b-2.png": b"b",
        "b-2.txt": b"of b",
    }


def test_captions_that_were_corrected_since_stay(project, tmp_path):
    source = fill(tmp_path / "x", {"a.png": b"a", "a.txt": b"wrong"})
    list(import_images(project, source))
    (project.dataset / "a.txt").write_bytes(b"right")
    noted = notes(import_images(project, source))
    assert dataset(project) == {"a.png": b"a", "a.txt": b"right"} and "a.txt" in noted["caption kept"][0]


def test_an_image_that_changed_takes_its_caption_along_and_the_old_one_keeps_its_own(project, tmp_path):
    source = fill(tmp_path / "x", {"a.png": b"a", "a.txt": b"same"})
    list(import_images(project, source))
    (source / "a.png").write_bytes(b"changed")
    list(import_images(project, source))
    assert dataset(project) == {"a.png": b"a", "a.txt": b"same", "a-2.png": b"changed", "a-2.txt": b"same"}


@pytest.mark.parametrize("how", ["zip", "folder"])
@pytest.mark.parametrize("after", [1, 2, 3, 5, 8])
def test_cut_anywhere_and_run_again_it_is_as_if_it_had_not_been_cut(project, tmp_path, monkeypatch, how, after):
    monkeypatch.setattr("lorakit.prepare.intake.AHEAD", 2)
    files = {f"pics/{i:02d}{end}": f"{i}{end}".encode() for i in range(8) for end in (".png", ".txt")}
    source = given(how, tmp_path, files)
    running = import_images(project, source)
    for _ in range(after):
        next(running)
    running.close()
    dataset(project)
    list(import_images(project, source))
    assert dataset(project) == {name.removeprefix("pics/"): data for name, data in files.items()}


def test_the_source_is_read_once_and_never_changed(project, tmp_path, monkeypatch):
    import shutil

    source = fill(tmp_path / "drive", PILE)
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in source.rglob("*")}
    read, copyfile = [], shutil.copyfile

    def counted(one, two, **options):
        read.append(Path(one))
        return copyfile(one, two, **options)

    monkeypatch.setattr(shutil, "copyfile", counted)
    list(import_images(project, source))
    assert sorted(read) == sorted(path for path in before if path.is_file())
    list(import_images(project, source))
    assert len(read) == len(PILE), "what is there with the same size and time is not read again"
    assert before == {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in source.rglob("*")}


def test_what_cannot_be_read_is_named_and_the_rest_arrives(project, tmp_path):
    source = fill(tmp_path / "x", {"a.png": b"a", "sub/b.png": b"b"})
    os.mkfifo(source / "pipe.png")
    (source / "gone.png").symlink_to(tmp_path / "nowhere")
    (source / "linked.png").symlink_to(fill(tmp_path / "y", {"c.png": b"c"}) / "c.png")
    (source / "loop").symlink_to(source)
    noted = notes(import_images(project, source))["left out"]
    assert dataset(project) == {"a.png": b"a", "sub/b.png": b"b", "linked.png": b"c"}
    assert not (project.dataset / "linked.png").is_symlink()
    assert [line.partition(":")[0] for line in noted] == ["loop", "gone.png", "pipe.png"]
    assert "no plain file" in noted[2]


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "a/../../out.png", "C:\\out.png"])
@pytest.mark.parametrize("maker", [zipped, tarred])
def test_nothing_leaves_the_data_set(project, tmp_path, maker, name):
    archive = maker(tmp_path / "x.zip", {"a.png": b"a", name: b"out"})
    with pytest.raises(ArchiveError, match="leads out"):
        list(import_images(project, archive))
    assert dataset(project) == {} and [p.name for p in tmp_path.rglob("*.png")] == []


def test_links_in_archives_are_refused(project, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as opened:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    with pytest.raises(ArchiveError, match="link"):
        list(import_images(project, {"x.tar": (tmp_path / "x.tar").read_bytes()}))
    assert dataset(project) == {}


def test_bombs_are_refused(project, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.png", bytes(80 << 20))
    with pytest.raises(ArchiveError, match="times as large"):
        list(import_images(project, tmp_path / "x.zip"))
    assert dataset(project) == {}


def test_an_upload_is_several_files_and_archives_and_its_names_are_names_only(project, tmp_path):
    inner = zipped(tmp_path / "k.zip", {"c.png": b"c"}).read_bytes()
    upload = {"../../a.png": b"a", "C:\\fake\\b.png": b"b", "b.txt": b"bee", "..": b"", "k.zip": inner}
    list(import_images(project, upload))
    assert dataset(project) == {"a.png": b"a", "b.png": b"b", "b.txt": b"bee", "c.png": b"c"}


def test_one_image_brings_its_caption(project, tmp_path):
    source = fill(tmp_path / "x", {"a.png": b"a", "a.txt": b"mofu", "b.png": b"b"})
    list(import_images(project, source / "a.png", "mofu"))
    assert dataset(project) == {"1_mofu/a.png": b"a", "1_mofu/a.txt": b"mofu"}


@pytest.mark.parametrize("what", ["nothing.zip", "text.md", "project/dataset", "project", "broken.zip"])
def test_what_cannot_be_added_is_refused_with_a_sentence(project, tmp_path, what):
    fill(tmp_path, {"text.md": b"x", "broken.zip": b"PK nonsense", "project/dataset/a.png": b"a"})
    with pytest.raises((IntakeError, ArchiveError), match=r"\w+"):
        list(import_images(project, tmp_path / what))
    assert dataset(project) == {"a.png": b"a"}


def test_images_beside_concept_folders_are_told(project, tmp_path):
    fill(project.dataset, {"loose.png": b"x", "more/y.png": b"y"})
    assert "loose.png, more" in notes(import_images(project, fill(tmp_path / "k", KOHYA)))["beside"][0]


def test_a_moving_image_is_not_said_to_be_none(project, tmp_path):
    noted = notes(import_images(project, fill(tmp_path / "pile", {"a.png": b"a", "wave.mpg": b"x"})))
    assert noted["left out"] == [f"wave.mpg: left out, no image or caption of a kind that is used ({', '.join(USED)})."]


def test_what_a_killed_process_left_is_removed(project, tmp_path):
    from lorakit.files.copying import MACHINE

    fill(project.dataset, {f".intake.{MACHINE}.99999999.part/x.png": b"x"})
    list(import_images(project, fill(tmp_path / "x", {"a.png": b"a"})))
    assert dataset(project) == {"a.png": b"a"}


def test_a_full_disk_is_told_as_such(project, tmp_path, monkeypatch):
    import errno

    from lorakit.files.disk import DiskFull

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(DiskFull, match="to resume"):
        list(import_images(project, fill(tmp_path / "x", {"a.png": b"a"})))


def test_a_whole_project_of_kohyas_and_masks_in_a_folder_come_in_as_what_they_are(project, tmp_path):
    pile = {"p/img/10_mofu/a.png": b"a", "p/reg_data/1_girl/b.png": b"b", "p/img/10_mofu/mask/a.png": b"m"}
    list(import_images(project, fill(tmp_path / "kohya", pile)))
    assert set(dataset(project)) == {"10_mofu/a.png", "reg/1_girl/b.png", "10_mofu/mask/a.png"}
    list(import_images(project, fill(tmp_path / "plain", {"c.png": b"c", "mask/c.png": b"m"}), into="5_rin"))
    assert {"5_rin/c.png", "5_rin/c-masklabel.png"} <= set(dataset(project))
