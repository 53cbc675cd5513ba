"""Grids in a cell: shown while they grow, interrupted without an error, chosen in a form."""

import base64
import io
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython import display as ipython_display
from logs import project, saved, started, stepped, write
from PIL import Image
from sessions import new_run
from tiny import save_sd15

from lorakit.config import ConfigError, to_dict
from lorakit.data.listing import Note
from lorakit.generation.grid import Axis, Cell, Done, Rendered
from lorakit.run.config import configure
from lorakit.training.loop import train
from widgets.evaluate import grid as view
from widgets.evaluate.grid_form import GridForm, suggested


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the tiny model with three LoRA files."""
    folder = tmp_path_factory.mktemp("grid")
    base = save_sd15(folder / "base")
    run = new_run(
        folder / "project",
        base,
        {"data": {"trigger": "mofu"}, "loop": {"steps": 3}, "save": {"every_steps": 1}},
    )
    for _ in train(run):
        pass
    assert run.lora_steps() == [1, 2, 3]
    return run


@pytest.fixture
def drawn(monkeypatch):
    """Everything that a cell shows, one after the other."""
    shown = []
    monkeypatch.setattr(view, "REDRAW", 0.0)
    monkeypatch.setattr(
        ipython_display,
        "display",
        lambda html, display_id: (
            shown.append(html.data) or SimpleNamespace(update=lambda html: shown.append(html.data))
        ),
    )
    return shown


def images(html: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"jpeg;base64,([^\"]+)", html)]


def fake(folder: Path, columns: int, rows: int, side: int, *, stop: int = -1):
    """The events of a grid of noise, row by row; the interrupt button is pressed after `stop` images."""
    for place in range(columns * rows):
        if place == stop:
            os.kill(os.getpid(), signal.SIGINT)
        row, column = divmod(place, columns)
        file = folder / f"{place}.png"
        Image.effect_noise((side, side), 90).convert("RGB").save(file, compress_level=1)
        yield Rendered(Cell(column, row, 1, 1.0, "", 0), file, place + 1, columns * rows)
    sheet = Image.effect_noise((side * columns, side * rows), 90).convert("RGB")
    sheet.save(folder / "grid.png", compress_level=1)
    yield Done(folder / "grid.png", folder / "grid.json")


def test_the_sheet_grows_with_empty_places_and_ends_whole(tmp_path, drawn):
    view.show_grid(fake(tmp_path, 3, 2, 64))
    growing = [html for html in drawn if "image " in html]
    assert [re.search(r"image (\d) / 6", html)[1] for html in growing] == ["1", "2", "3", "4", "5"]
    assert len({image.size for html in growing[2:] for image in images(html)}) <= 2, "it keeps its shape"
    assert str(tmp_path / "grid.png") in drawn[-1] and len(images(drawn[-1])) == 1


def test_what_is_not_done_in_a_prompt_is_shown_before_the_first_image_and_at_the_end(tmp_path, drawn):
    def events():
        yield Note("prompt", "a <lora:x:1>", "<lora:x:1> is left out: no other LoRA is loaded.")
        yield from fake(tmp_path, 1, 2, 64)

    view.show_grid(events())
    shown = ["&lt;lora:x:1&gt; is left out" in html for html in drawn]
    assert shown[1] and shown[-1] and not images(drawn[1]) and images(drawn[-1])


def test_axes_that_are_known_label_the_sheet_from_the_first_image(tmp_path, drawn):
    x, y = Axis("checkpoint", (1, 2, 3)), Axis("seed", (1, 2))
    view.show_grid(view.ShownGrid(x, y, fake(tmp_path, 3, 2, 64)))
    sizes = {images(html)[0].size for html in drawn if "image " in html}
    assert len(sizes) == 1, "all of its places are there from the beginning"
    (width, height) = sizes.pop()
    assert width > 3 * 64 and height > 2 * 64


def test_what_is_left_in_the_notebook_is_bounded_however_large_the_grid_is(tmp_path, drawn):
    view.show_grid(fake(tmp_path, 5, 3, 512))
    assert max(map(len, drawn)) < 600_000
    assert images(drawn[-1])[0].width <= 1600


def test_the_interrupt_button_leaves_the_images_and_no_error(tmp_path, drawn):
    events = fake(tmp_path, 3, 2, 64, stop=4)
    view.show_grid(events)
    assert "4 of 6 images are generated and kept" in drawn[-1] and len(images(drawn[-1])) == 1


def test_the_interrupt_button_pressed_twice_leaves_no_error_either(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(view, "_free", lambda events: signal.raise_signal(signal.SIGINT))
    view.show_grid(fake(tmp_path, 3, 2, 64, stop=0))
    assert "Images generated before are kept" in drawn[-1] and not images(drawn[-1])


def test_a_waiting_generator_is_closed_by_the_interrupt_button(tmp_path, drawn, monkeypatch):
    events, put = fake(tmp_path, 3, 2, 64), view.Sheet.put
    monkeypatch.setattr(view.Sheet, "put", lambda self, event: (put(self, event), signal.raise_signal(signal.SIGINT)))
    view.show_grid(view.ShownGrid(Axis("checkpoint", (1, 2, 3)), Axis("seed", (1, 2)), events))
    assert "1 of 6 images" in drawn[-1] and events.gi_frame is None


def test_the_form_generates_what_it_shows(trained, drawn):
    form = GridForm(trained)
    form.strengths.value = "0.5，1"
    form.sampling_steps.value, form.seed.value = 1, 7
    assert "4 columns × 2 rows = 8 images" in form.summary.value
    view.show_grid(form.grid())
    folder = trained.grids / "checkpoint-strength"
    assert str(folder / "grid.png") in drawn[-1] and len(list((folder / "cells").iterdir())) == 7, "off is off twice"
    with Image.open(next((folder / "cells").iterdir())) as cell:
        assert cell.size == (64, 64) and json.loads(cell.text["parameters"])["seed"] == 7


def test_every_nth_checkpoint_is_counted_from_the_newest(trained):
    form = GridForm(trained)
    form.every.value = 2
    assert form.axes()[0].values == ("off", 1, 3)
    form.off.value = False
    form.every.value = 3
    assert form.axes()[0].values == (3,)


def test_any_two_of_the_four_axes_can_be_chosen_and_only_their_fields_are_seen(trained):
    form = GridForm(trained)
    form.x.value, form.y.value = "seed", "prompt"
    x, y = form.axes()
    assert x.values == (42, 43, 44) and "mofu" in y.values and len(y.values) > 3
    seen = {name for name, (own, _) in form.values.items() if own[0].layout.display != "none"}
    instead = {name for name, (_, instead) in form.values.items() if instead[0].layout.display != "none"}
    assert seen == {"seed", "prompt"} and instead == {"checkpoint", "strength"}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"y": "checkpoint"}, "the same"),
        ({"strengths": "1, much"}, "&#x27;much&#x27; is not a number"),
        ({"y": "prompt", "prompts": " \n"}, "has no values"),
        ({"y": "seed", "seeds": "-1"}, "-1 cannot be a value"),
    ],
)
def test_values_that_cannot_be_generated_are_explained_in_the_form(trained, changes, text):
    form = GridForm(trained)
    for name, value in changes.items():
        getattr(form, name).value = value
    assert text in form.summary.value
    with pytest.raises(ConfigError):
        form.grid()


def test_suggested_prompts_test_what_was_learned_and_what_leaks(trained):
    form = GridForm(trained)
    prompts = suggested(trained, form.config)
    assert prompts[0] == "mofu", "the trigger word alone"
    assert any("moon" in prompt for prompt in prompts) and "mofu" not in prompts[-1], "far from the images; a leak"
    assert len(prompts) == len(set(prompts)) >= 5
    # brackets of a trigger or a caption are letters, not weights
    named = configure({**to_dict(form.config), "data": {**to_dict(form.config.data), "trigger": "mofu (x)"}})
    assert suggested(trained, named)[0] == "mofu \\(x\\)"


def test_a_run_without_files_can_only_be_compared_without_them(tmp_path, trained):
    run = project(tmp_path).run("r")
    write(run, started(0, 9), stepped(1), saved(run, 1))
    run.config_file.write_text(trained.config_file.read_text(encoding="utf-8"), encoding="utf-8")
    assert GridForm(run).axes()[0].values == ("off",)
