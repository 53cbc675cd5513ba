"""XY grids: what each cell shows, what is on disk when, and that nothing is loaded or painted twice."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
from PIL import Image

from lorakit.config import ConfigError, to_dict
from lorakit.data.listing import Note
from lorakit.diffusion.prompts import parse
from lorakit.events import Sampled
from lorakit.generation.contact_sheet import labelled
from lorakit.generation.generator import OFF, Generator
from lorakit.generation.grid import Axis, Cell, Done, Rendered, _file, grid
from lorakit.hub.header import ModelFileError
from lorakit.lora.export import LoraFileError
from lorakit.project import Project, ProjectError, Run
from lorakit.run.config import configure, read_config
from lorakit.run.create import save_config
from lorakit.run.sampling import SamplingConfig
from lorakit.training.loop import train

PROMPT = "mofu, girl"
LOOK = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 4.0, "seed": 11, "negative_prompt": "boy"}
sampling = SamplingConfig(**LOOK)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project with two runs of two checkpoints each: `unet`, and `both` that trains the text encoder too."""
    root = tmp_path_factory.mktemp("grid")
    base = tiny.save_sd15(root / "secretfolder" / "base-v1")
    made = Project(root / "project")
    tiny.save_images(made.dataset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for name, text_encoder_lr in (("unet", 0.0), ("both", 0.2)):
            settings = tiny.settings(
                base,
                adapter={"rank": 4, "alpha": 3},
                optimizer={"learning_rate": 0.2, "text_encoder_lr": text_encoder_lr},
                loop={"epochs": 2, "batch_size": 4},
                save={"dtype": "fp32"},
                sample={"prompts": [PROMPT], **LOOK},
            )
            save_config(made.run(name), configure(settings))
            for _ in train(made.run(name)):
                pass
        yield made


@pytest.fixture(params=("unet", "both"))
def run(request, project) -> Run:
    return project.run(request.param)


@pytest.fixture
def unet(project) -> Run:
    return project.run("unet")


@pytest.fixture(autouse=True)
def no_grids_of_other_tests(project):
    yield
    for run in project.runs():
        shutil.rmtree(run.grids, ignore_errors=True)


def render_all(run: Run, x: Axis, y: Axis, **options) -> tuple[dict[tuple, np.ndarray], list[Rendered], Done]:
    """{(x value, y value): pixels}, the events of the cells, and the end."""
    *painted, done = grid(run, x, y, **{"prompt": PROMPT, "sampling": sampling, **options})
    pixels = {
        (x.values[event.cell.column], y.values[event.cell.row]): np.asarray(Image.open(event.file)).astype(int)
        for event in painted
    }
    assert len(painted) == len(x.values) * len(y.values)
    return pixels, painted, done


def different(a: np.ndarray, b: np.ndarray) -> bool:
    return abs(a - b).mean() > 1


# ---- what the cells show ---------------------------------------------------------------------------------------------


def test_cells_are_checkpoints_at_strengths_and_off_is_the_base(run):
    first, last = run.lora_steps()
    pixels, _, _ = render_all(run, Axis("checkpoint", (OFF, first, last)), Axis("strength", (0.0, 0.5, 1.0)))
    base = base_image(run)
    assert all(np.array_equal(pixels[OFF, strength], base) for strength in (0.0, 0.5, 1.0))
    assert all(np.array_equal(pixels[step, 0.0], base) for step in (first, last))
    shown = [base, pixels[first, 0.5], pixels[first, 1.0], pixels[last, 0.5], pixels[last, 1.0]]
    assert all(different(a, b) for i, a in enumerate(shown) for b in shown[:i])


def base_image(run: Run) -> np.ndarray:
    """The prompt painted by a plain pipeline of the base, with the sampling's numbers."""
    import torch

    source = read_config(run).model.source
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    image = pipeline(
        PROMPT,
        negative_prompt=sampling.negative_prompt,
        width=64,
        height=64,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(sampling.seed),
    ).images[0]
    return np.asarray(image).astype(int)


def test_a_cell_is_the_trainers_own_sample_of_that_step(run):
    from lorakit import events

    samples = {e.step: run.folder / e.image for _, e in events.read(run.log) if isinstance(e, Sampled)}
    assert list(samples) == run.lora_steps()
    pixels, _, _ = render_all(run, Axis("checkpoint", tuple(samples)), Axis("seed", (sampling.seed,)))
    for step, file in samples.items():
        assert abs(pixels[step, sampling.seed] - np.asarray(Image.open(file)).astype(int)).max() <= 1


def test_seed_and_prompt_axes_change_what_they_say_and_nothing_else(run):
    prompts, seeds = (PROMPT, "boy, hat"), (3, 4)
    pixels, _, _ = render_all(run, Axis("prompt", prompts), Axis("seed", seeds))
    shown = list(pixels.values())
    assert all(not np.array_equal(a, b) for i, a in enumerate(shown) for b in shown[:i])
    turned, _, _ = render_all(run, Axis("seed", seeds), Axis("prompt", prompts), name="turned", prompt="")
    assert all(np.array_equal(pixels[prompt, seed], turned[seed, prompt]) for prompt in prompts for seed in seeds)


@pytest.mark.parametrize("axis", (Axis("checkpoint", (OFF,)), Axis("strength", (0.0, 1.0)), Axis("prompt", (PROMPT,))))
def test_cells_along_an_axis_start_from_the_same_noise(unet, axis):
    with pytest.MonkeyPatch.context() as patch:
        noises = []
        original = diffusers.StableDiffusionPipeline.prepare_latents

        def recording(self, *args, **kwargs):
            latents = original(self, *args, **kwargs)
            noises.append(latents.numpy().tobytes())
            return latents

        patch.setattr(diffusers.StableDiffusionPipeline, "prepare_latents", recording)
        render_all(unet, axis, Axis("seed", (1, 2)))
    assert len(noises) == 2 * len(axis.values) and len(set(noises)) == 2


AXES = {
    "checkpoint": lambda run: (OFF, run.lora_steps()[-1]),
    "strength": lambda run: (0.0, 1.0),
    "prompt": lambda run: (PROMPT, "hat"),
    "seed": lambda run: (1, 2),
}


@pytest.mark.parametrize("x, y", tuple(itertools.combinations(AXES, 2)))
def test_any_two_things_can_be_the_axes(unet, x, y):
    pixels, painted, done = render_all(unet, Axis(x, AXES[x](unet)), Axis(y, AXES[y](unet)))
    assert len(pixels) == 4 and [event.done for event in painted] == [1, 2, 3, 4]
    for event in painted:
        assert getattr(event.cell, x) == AXES[x](unet)[event.cell.column]
        assert getattr(event.cell, y) == AXES[y](unet)[event.cell.row]
    record = json.loads(done.record.read_text())
    assert record["x"]["name"] == x and record["y"]["values"] == list(AXES[y](unet))


def test_without_a_checkpoint_axis_the_newest_is_painted(unet):
    pixels, painted, _ = render_all(unet, Axis("strength", (1.0,)), Axis("seed", (1,)))
    assert painted[0].cell.checkpoint == unet.lora_steps()[-1]
    older, _, _ = render_all(unet, Axis("strength", (1.0,)), Axis("seed", (1,)), checkpoint=unet.lora_steps()[0])
    assert different(pixels[1.0, 1], older[1.0, 1])


# ---- nothing twice ---------------------------------------------------------------------------------------------------


def test_the_base_is_loaded_once_for_the_whole_grid(run, monkeypatch):
    loads = []
    for kind in (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL):
        original = kind.from_config

        def counting(*args, _original=original, _kind=kind, **kwargs):
            loads.append(_kind.__name__)
            return _original(*args, **kwargs)

        monkeypatch.setattr(kind, "from_config", counting)
    render_all(run, Axis("checkpoint", (OFF, *run.lora_steps())), Axis("strength", (0.5, 1.0)))
    assert sorted(loads) == ["AutoencoderKL", "UNet2DConditionModel"]


def test_checkpoints_are_exchanged_in_place(run):
    generator, (first, last) = Generator(run), run.lora_steps()
    assert generator.use(first) == (66 if run.name == "both" else 48)

    def weights() -> dict[str, tuple[int, int]]:
        return {
            f"{part}.{name}": (id(weight), weight.data_ptr())
            for part in generator.model.loaded()
            for name, weight in generator.model.load(part).named_parameters()
        }

    before, number = weights(), generator.model.load("unet").mid_block.attentions[0].proj_in.lora_B["default"].weight
    value = number.detach().clone()
    generator.use(last)
    generator.use(OFF)
    assert weights() == before
    assert not number.equal(value)
    generator.use(first)
    assert weights() == before and number.equal(value)


def test_strength_and_off_are_forgotten_when_the_next_cell_says_otherwise(unet):
    generator, step = Generator(unet), unet.lora_steps()[-1]
    generator.use(step)
    trained = generator.generate(parse(PROMPT), sampling).tobytes()
    for checkpoint, strength in ((OFF, 1.0), (step, 0.3), (unet.lora_steps()[0], 1.0)):
        generator.use(checkpoint, strength)
        assert generator.generate(parse(PROMPT), sampling).tobytes() != trained
    generator.use(step)
    assert generator.generate(parse(PROMPT), sampling).tobytes() == trained


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_an_interrupted_grid_goes_on_and_ends_as_an_uninterrupted_one(run):
    axes = Axis("checkpoint", (OFF, *run.lora_steps())), Axis("strength", (0.5, 1.0))
    options = {"prompt": PROMPT, "sampling": sampling}
    cells = grid(run, *axes, **options)
    for _ in range(3):
        next(cells)
    cells.close()
    folder = run.grids / "grid"
    before = snapshot(folder / "cells")
    assert 1 <= len(before) <= 3 and not (folder / "grid.png").exists()
    render_all(run, *axes)
    after = snapshot(folder / "cells")
    assert {name: after[name] for name in before} == before
    render_all(run, *axes, name="whole")
    whole = snapshot(run.grids / "whole")
    assert {name: data for name, (_, data) in whole.items()} == {
        name: data for name, (_, data) in snapshot(folder).items()
    }


def test_a_half_written_cell_is_painted_again(unet, monkeypatch):
    def failing(*args, **kwargs):
        raise OSError("no space left")

    axes = Axis("strength", (1.0,)), Axis("seed", (1,))
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", failing)
        with pytest.raises(OSError, match="no space left"):
            list(grid(unet, *axes, prompt=PROMPT, sampling=sampling))
    assert list((unet.grids / "grid" / "cells").glob("*.png")) == []
    render_all(unet, *axes)


def test_a_finished_grid_is_not_painted_again_whatever_else_the_run_samples(unet):
    axes = Axis("strength", (0.5, 1.0)), Axis("seed", (1, 2))
    render_all(unet, *axes)
    before = snapshot(unet.grids / "grid" / "cells")
    render_all(unet, *axes, sampling=read_config(unet).sample)  # the same sampling beside other settings
    assert snapshot(unet.grids / "grid" / "cells") == before


def test_whatever_decides_an_image_paints_it_anew(unet):
    axes = Axis("strength", (1.0,)), Axis("seed", (1,))
    files = {event.file for event in render_all(unet, *axes)[1]}
    for change in ({"steps": 3}, {"guidance_scale": 5.0}, {"negative_prompt": ""}, {"sampler": "euler_a"}):
        files |= {event.file for event in render_all(unet, *axes, sampling=SamplingConfig(**{**LOOK, **change}))[1]}
    files |= {event.file for event in render_all(unet, *axes, prompt="hat")[1]}
    files |= {event.file for event in render_all(unet, *axes, checkpoint=unet.lora_steps()[0])[1]}
    assert len(files) == 7


# ---- what is on disk -------------------------------------------------------------------------------------------------


def test_cells_are_stored_as_they_come_with_their_parameters_inside(unet):
    step = unet.lora_steps()[-1]
    seen = 0
    for event in grid(unet, Axis("checkpoint", (OFF, step)), Axis("seed", (1, 2)), prompt=PROMPT, sampling=sampling):
        if isinstance(event, Rendered):
            seen += 1
            assert event.file.exists() and len(list(event.file.parent.glob("*.png"))) == seen == event.done
            with Image.open(event.file) as image:
                message = json.loads(image.text["parameters"])
            assert message == {**LOOK, "sampler": "ddim", "shift": 0.0, **vars(event.cell), "base": "base-v1"}
    assert seen == 4


def test_the_labelled_image_holds_every_cell_at_its_place(unet):
    step = unet.lora_steps()[-1]
    pixels, _, done = render_all(unet, Axis("checkpoint", (OFF, step)), Axis("strength", (0.5, 1.0, 1.5)))
    sheet = np.asarray(Image.open(done.image)).astype(int)
    height, width = sheet.shape[:2]
    left, above = width - 2 * (64 + 6), height - 3 * (64 + 6)
    assert left > 30 and above > 10  # room for labels
    for (checkpoint, strength), cell in pixels.items():
        x, y = left + 70 * (OFF, step).index(checkpoint), above + 70 * (0.5, 1.0, 1.5).index(strength)
        assert np.array_equal(sheet[y : y + 64, x : x + 64], cell)
    assert sheet[:above].min() < 100 and sheet[:, :left].min() < 100  # ink


def test_the_record_tells_all_and_names_files_relative_to_itself(unet, project):
    step = unet.lora_steps()[-1]
    _, painted, done = render_all(unet, Axis("checkpoint", (OFF, step)), Axis("strength", (0.5, 1.0)))
    text = done.record.read_text()
    record = json.loads(text)
    assert record["x"] == {"name": "checkpoint", "values": [OFF, step]}
    assert record["y"] == {"name": "strength", "values": [0.5, 1.0]}
    assert record["sampling"] == {**LOOK, "sampler": "ddim", "shift": 0.0} and record["base"] == "base-v1"
    assert [(cell["row"], cell["column"]) for cell in record["cells"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    files = {(event.cell.column, event.cell.row): event.file for event in painted}
    for cell in record["cells"]:
        assert done.record.parent / cell["file"] == files[cell["column"], cell["row"]]
        assert not Path(cell["file"]).is_absolute()
        assert cell["prompt"] == PROMPT and cell["seed"] == sampling.seed
    assert "secretfolder" not in text and str(project.folder) not in text
    assert str(project.folder) not in Image.open(done.image).text["parameters"]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values, message",
    (
        ("steps", (1,), "'steps' cannot be an axis; allowed are checkpoint, strength, prompt, seed"),
        ("seed", (), "The axis seed has no values"),
        ("seed", (-1,), "-1 cannot be a value of the axis seed, which takes whole numbers from 0"),
        ("seed", (2**32,), "4294967296 cannot be a value"),
        ("seed", (1.5,), "1.5 cannot be a value"),
        ("strength", (float("nan"),), "nan cannot be a value of the axis strength, which takes numbers"),
        ("strength", ("1",), "'1' cannot be a value"),
        ("prompt", (1,), "1 cannot be a value of the axis prompt, which takes texts"),
        ("checkpoint", ("on",), "'on' cannot be a value of the axis checkpoint, which takes steps or 'off'"),
    ),
)
def test_an_axis_that_makes_no_sense_is_refused(name, values, message):
    with pytest.raises(ConfigError, match=message):
        Axis(name, values)


def test_equal_axes_missing_checkpoints_and_odd_names_are_refused_before_anything_is_painted(unet):
    seed = Axis("seed", (1,))
    refused = (
        (ConfigError, "Both axes are seed", {"x": seed}),
        (ProjectError, r"no LoRA file of step 99; it has 3, 6", {"x": Axis("checkpoint", (OFF, 99))}),
        (ProjectError, r"no LoRA file of step 7", {"checkpoint": 7}),
        (ProjectError, "'../x' cannot be a grid's name", {"name": "../x"}),
    )
    for kind, message, change in refused:
        with pytest.raises(kind, match=message):
            next(grid(unet, **{"x": Axis("strength", (1.0,)), "y": seed, "prompt": "", "sampling": sampling, **change}))
    assert not unet.grids.exists()


def test_a_file_of_another_base_or_run_is_refused(project, unet, tmp_path):
    step = unet.lora_steps()[0]
    kept = unet.lora_file(step).read_bytes()
    try:
        shutil.copy(project.run("both").lora_file(step), unet.lora_file(step))
        with pytest.raises(LoraFileError, match="18 of 66 modules are not in it, the first is lora_te_text_model"):
            render_all(unet, Axis("checkpoint", (step,)), Axis("seed", (1,)))
        unet.lora_file(step).write_bytes(kept[:-10])
        with pytest.raises(ModelFileError, match="is truncated"):
            render_all(unet, Axis("checkpoint", (step,)), Axis("seed", (1,)))
    finally:
        unet.lora_file(step).write_bytes(kept)


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_say_what_a_value_is():
    assert Axis("checkpoint", (OFF, 1200)).label(OFF) == "LoRA off"
    assert Axis("checkpoint", (OFF, 1200)).label(1200) == "step 1200"
    assert Axis("strength", (0.6,)).label(0.6) == "strength 0.6"
    assert Axis("seed", (4294967295,)).label(4294967295) == "seed 4294967295"
    assert Axis("prompt", ("a cat",)).label("a cat") == "a cat"


LONG = "masterpiece, best quality, " * 20


def test_long_labels_stay_within_their_row_and_column(tmp_path):
    file = tmp_path / "cell.png"
    Image.new("RGB", (96, 96), "red").save(file)
    short = labelled([file] * 4, ["a", "b"], ["c", "d"])
    sheet = labelled([file] * 4, [LONG + "smile", "b"], [LONG + "smile", "d"])
    assert sheet.height < short.height + 130
    left, above = sheet.width - 2 * 102, sheet.height - 2 * 102
    beside = np.asarray(sheet.crop((0, above, left, above + 96 + 6 + 30)).convert("L"))
    assert (beside[:96] < 128).any() and not (beside[96:] < 128).any()


def test_labels_that_begin_alike_are_told_apart(tmp_path):
    file = tmp_path / "cell.png"
    Image.new("RGB", (96, 96), "red").save(file)

    def beside(first: str, second: str) -> tuple[bytes, bytes]:
        sheet = labelled([file, file], ["a"], [first, second])
        left, above = sheet.width - 102, sheet.height - 2 * 102
        return tuple(sheet.crop((0, top, left, top + 96)).tobytes() for top in (above, above + 102))

    first, second = beside(LONG + "smile", LONG + "angry")
    assert first != second
    first, second = beside(LONG, LONG)
    assert first == second


# ---- what prompts say ------------------------------------------------------------------------------------------------


def test_flags_weights_and_notes_of_prompts_are_understood(run, tmp_path):
    texts = ("(mofu:1.3), girl --w 96 --h 70 --d 3 --s 1 --n (boy:1.2)", "mofu, girl", "mofu <lora:x:1> --zz 4")
    own = Run(run.project, run.name, shutil.copytree(run.folder, tmp_path / "run"))
    events = list(grid(own, Axis("prompt", texts), Axis("strength", (1.0,)), prompt="", sampling=sampling))
    notes = [event for event in events if isinstance(event, Note)]
    # before the first image, as the base model is not even loaded
    assert events[: len(notes)] == notes and len(notes) == 3
    assert "height 70 is rounded to 64" in notes[0].text and "<lora:x:1> is left out" in notes[2].text + notes[1].text
    images = {event.cell.prompt: Image.open(event.file) for event in events if isinstance(event, Rendered)}
    first = images[texts[0]]
    assert first.size == (96, 64) and images[texts[1]].size == (64, 64)
    stored = json.loads(first.info["parameters"])
    assert (stored["seed"], stored["steps"], stored["negative_prompt"]) == (3, 1, "(boy:1.2)")
    # the sheet scales what has another size
    assert isinstance(events[-1], Done) and Image.open(events[-1].image).width > 3 * 96
    seeds = list(grid(own, Axis("prompt", texts[:1]), Axis("seed", (5,)), prompt="", sampling=sampling))
    assert next(event.cell.seed for event in seeds if isinstance(event, Rendered)) == 5


def test_a_plain_prompt_has_the_image_file_that_earlier_versions_made(run):
    generator = Generator(run)
    cell = Cell(0, 0, OFF, 1.0, PROMPT, 11)
    inputs = [generator.fingerprint(), OFF, 0.0, PROMPT, {**to_dict(sampling), "seed": 11}]
    assert _file(generator, cell, sampling, Path()).stem == hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:24]
    weighted = replace(cell, prompt="(mofu:1.2), girl")
    assert _file(generator, weighted, sampling, Path()) != _file(
        generator, replace(cell, prompt="mofu, girl"), sampling, Path()
    )
