"""Regularization images: one for each training image, by every family's base, gone on with wherever they stop."""

from __future__ import annotations

import dataclasses
from itertools import islice

import pytest
from PIL import Image
from sessions import family_settings
from tiny import save_images
from tiny import settings as tiny_settings

from lorakit.config import ConfigError
from lorakit.data.listing import Note
from lorakit.data.scan import scan
from lorakit.generation.regularize import Generated, RegularizeConfig, parameters, plan, prompt_of, regularize
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.sampling import SamplingConfig, generate_image

HOW = RegularizeConfig()
SIZES = ((64, 64), (96, 64), (64, 64))
DATA = {"resolution": 96, "min_bucket_reso": 64, "max_bucket_reso": 128, "bucket_reso_steps": 32}


@pytest.fixture
def project(tmp_path):
    """Three images in two shapes."""
    project = Project(tmp_path / "p")
    save_images(project.dataset, repeats=3, sizes=SIZES)
    return project


@pytest.fixture
def config(base, family):
    """A run's config of the family, with a trigger."""
    hard = family_settings(family, base)[0]
    return configure(tiny_settings(base, model=hard["model"], data={**DATA, "trigger": "mofu"}))


only_sd15 = pytest.mark.parametrize("family", ["sd15"], indirect=True)


def made(project, config, how=HOW) -> tuple[list[Generated], list[str]]:
    """What one call painted, and what it told."""
    events = list(regularize(project, config, how))
    images = [event for event in events if isinstance(event, Generated)]
    assert [event.done for event in images] == list(range(1, len(images) + 1))
    assert {event.total for event in images} <= {len(images)}
    return [event for event in images if event.is_new], [str(e) for e in events if isinstance(e, Note)]


def bytes_of(project) -> dict[str, bytes]:
    """All files below reg/."""
    reg = project.dataset / "reg"
    return {file.relative_to(reg).as_posix(): file.read_bytes() for file in reg.rglob("*") if file.is_file()}


# ---- every family ----------------------------------------------------------------------------------------------------


def test_every_training_image_has_one_of_its_size_that_is_trained_as_often(project, config):
    found, noted = made(project, config)
    assert len(found) == 3 and not noted
    after = scan(config.data, project.folder)
    training = [sample for sample in after.samples if not sample.is_reg]
    reg = [sample for sample in after.samples if sample.is_reg]
    assert [(s.width, s.height, s.repeats) for s in reg] == [(s.width, s.height, s.repeats) for s in training]
    assert [s.path.name for s in reg] == [s.path.name for s in training]
    assert {s.path.parent.name for s in reg} == {"3_1girl"}
    assert [s.caption for s in reg] == [s.caption.removeprefix("mofu, ") for s in training]
    assert not any("mofu" in s.caption for s in reg) and all(s.is_captioned for s in reg)


def test_an_image_is_what_the_base_paints_and_says_from_what(project, config):
    import torch

    from lorakit import models

    made(project, config)
    one = plan(project, config, HOW)[1]
    model = models.family(config.model.family).Model(config.model, torch.device("cpu"), torch.float32)
    sampling = SamplingConfig(width=96, height=64, steps=2, guidance_scale=config.sample.guidance_scale, seed=420)
    sampling = dataclasses.replace(
        sampling, sampler="ddim" if "ddim" in config.model.samplers else config.model.samplers[0]
    )
    with torch.no_grad():
        image = generate_image(model, model.encode_text(one.prompt), model.encode_text(""), sampling, 420)
    assert Image.open(one.file).tobytes() == image.tobytes()
    noted = parameters(one.file)
    assert noted["prompt"] == one.file.with_suffix(".txt").read_text() and noted["seed"] == 420
    assert str(config.model.source) not in str(noted)


def test_a_cut_one_goes_on_and_ends_as_an_uncut_one(project, config):
    list(islice(regularize(project, config, HOW), 1))
    assert len(bytes_of(project)) == 2
    assert len(made(project, config)[0]) == 2
    whole = bytes_of(project)
    for file in (project.dataset / "reg").rglob("*.*"):
        file.unlink()
    made(project, config)
    assert bytes_of(project) == whole
    assert not made(project, config)[0]


# ---- once ------------------------------------------------------------------------------------------------------------


@only_sd15
def test_only_what_was_made_of_something_else_is_made_anew(project, config):
    made(project, config)
    before = bytes_of(project)
    (project.dataset / "3_mofu/01.txt").write_text("mofu, boy, hat")
    (project.dataset / "reg/3_1girl/02.txt").write_text("edited by hand")
    assert [one.planned.file.name for one in made(project, config)[0]] == ["01.png"]
    after = bytes_of(project)
    assert after["3_1girl/01.txt"] == b"boy, hat" and after["3_1girl/02.txt"] == b"edited by hand"
    assert after["3_1girl/01.png"] != before["3_1girl/01.png"] and after["3_1girl/02.png"] == before["3_1girl/02.png"]
    longer = dataclasses.replace(config, sample=dataclasses.replace(config.sample, steps=3))
    assert len(made(project, longer)[0]) == 3


@only_sd15
def test_what_was_not_made_here_is_never_written_over(project, config):
    folder = project.dataset / "reg/3_1girl"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "00.png")
    (folder / "01.txt").write_text("mine")
    (folder / "02.png").write_bytes(b"no image at all")
    mine = (folder / "00.png").read_bytes()
    found, noted = made(project, config)
    assert len(found) == 1 and (folder / "02.png").read_bytes() == b"no image at all"
    assert (folder / "00.png").read_bytes() == mine and (folder / "01.txt").read_text() == "mine"
    assert [text.partition(",")[0] for text in noted] == [
        f"reg/3_1girl/0{i}.png: was not generated here" for i in (0, 2)
    ]


@only_sd15
def test_images_follow_their_folder_to_other_repeats_and_leftovers_are_named(project, config):
    made(project, config)
    before = bytes_of(project)
    (project.dataset / "3_mofu").rename(project.dataset / "5_mofu")
    assert made(project, config) == ([], [])
    assert bytes_of(project) == {name.replace("3_", "5_"): data for name, data in before.items()}
    (project.dataset / "5_mofu/00.png").unlink()
    found, noted = made(project, config)
    assert not found and noted == ["reg/5_1girl/00.png: is left over, as its training image is gone; delete it."]


@only_sd15
def test_images_of_an_earlier_class_stay_where_they_are_and_are_named(project, config):
    made(project, config, RegularizeConfig(class_name="small_girl"))
    found, noted = made(project, config, RegularizeConfig(class_name="girl"))
    more = "is trained on as well, which gives regularization images more weight; delete it if it is old."
    assert len(found) == 3 and noted == [f"reg/3_small_girl: {more}"]
    Image.new("RGB", (64, 64)).save(project.dataset / "3_mofu/04.png")
    (project.dataset / "2_other").mkdir()
    (project.dataset / "3_mofu/04.png").rename(project.dataset / "2_other/04.png")
    noted = made(project, config, RegularizeConfig(class_name="girl"))[1]
    assert noted == [f"reg/3_girl: {more}", f"reg/3_small_girl: {more}"]
    assert len(list((project.dataset / "reg/3_small_girl").glob("*.png"))) == 3


@only_sd15
def test_several_concepts_and_equal_names_have_an_image_each(tmp_path, project, config):
    save_images(project.dataset, repeats=2, sizes=SIZES[:1])
    (project.dataset / "2_mofu").rename(project.dataset / "2_other")
    Image.open(project.dataset / "2_other/00.png").save(project.dataset / "2_other/00.jpg")
    files = [one.file for one in plan(project, config, HOW)]
    assert len(set(files)) == 5 and {file.parent.name for file in files} == {"3_1girl_mofu", "2_1girl_other"}
    plain = Project(tmp_path / "plain")
    for name in ("a/0.png", "b/0.png"):
        (plain.dataset / name).parent.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(plain.dataset / name)
    names = [one.file.relative_to(plain.dataset).as_posix() for one in plan(plain, config, HOW)]
    assert names == ["reg/1_1girl/a-0.png", "reg/1_1girl/b-0.png"]


@only_sd15
def test_equal_prompts_start_from_other_noise_and_the_first_from_the_seed(project, config):
    seeds = [one.sampling.seed for one in plan(project, config, RegularizeConfig(use_captions=False))]
    assert len(set(seeds)) == 2 and seeds.count(420) == 2  # two of one size, one of another
    assert {one.sampling.seed for one in plan(project, config, HOW)} == {420}


@only_sd15
@pytest.mark.parametrize(
    "caption, trigger, prompt",
    [
        ("mofu, girl, red hair", "mofu", "girl, red hair"),
        ("girl, mofu, mofu hat", "mofu", "girl, 1girl hat"),
        ("A photo of mofu, smiling.", "mofu", "A photo of 1girl, smiling."),
        ("mofurin, girl", "mofu", "mofurin, girl"),
        ("mofu", "mofu", "1girl"),
        ("girl, hat", "", "girl, hat"),
        (r"m\1(u, girl", r"m\1(u", "girl"),
    ],
)
def test_the_trigger_is_left_out_of_prompts(project, config, caption, trigger, prompt):
    sample = dataclasses.replace(scan(config.data, project.folder).samples[0], caption=caption)
    assert prompt_of(sample, trigger, HOW) == prompt
    assert prompt_of(dataclasses.replace(sample, is_captioned=False), trigger, HOW) == "1girl"
    assert prompt_of(sample, trigger, RegularizeConfig(use_captions=False, class_name="cat")) == "cat"


@pytest.mark.parametrize("name", ["", "a/b", "../x", " girl", "a\nb", "x" * 101, "CON:", ".hidden"])
def test_a_class_that_cannot_name_a_folder_is_refused(name):
    with pytest.raises(ConfigError, match="class_name"):
        RegularizeConfig(class_name=name)


@only_sd15
def test_a_terminal_makes_them_too(project, base, capsys):
    from argparse import ArgumentParser

    from lorakit.cli import regularize

    changes = [f"model.source={base}", "sample.steps=2", "regularize.class_name=cat"]
    changes += [f"data.{name}={value}" for name, value in DATA.items()]
    parser = ArgumentParser()
    regularize.add(parser.add_subparsers())
    arguments = ["regularize", str(project.folder), *(part for change in changes for part in ("--set", change))]
    for new in (3, 0):
        options = parser.parse_args(arguments)
        assert options.verb(options) == 0
        assert f"3 regularization images, {new} of them new" in capsys.readouterr().out
    assert len(list((project.dataset / "reg/3_cat").glob("*.png"))) == 3
