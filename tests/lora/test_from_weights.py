"""A new run from a LoRA file begins with exactly the file's changes, and needs the file until its first state."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sessions import HARD, assert_same_end, at, family_settings, merged, new_run, until, warnings
from tiny import save_images, save_sd15, settings

from lorakit import models
from lorakit.config import ConfigError
from lorakit.events import Saved, Started
from lorakit.hub import SourceError
from lorakit.lora import export
from lorakit.lora import file as lora_file
from lorakit.lora.adapter import Adapter
from lorakit.lora.names import LoraFileError
from lorakit.lora.variants import AdapterConfig
from lorakit.lora.warm_start import adapter_settings
from lorakit.project import Project, ProjectError
from lorakit.run.config import configure
from lorakit.run.create import inherited, save_config, save_from_weights
from lorakit.run.resume import RunChanged
from lorakit.training.loop import Session, train
from lorakit.typed import Typed

CPU = torch.device("cpu")
SHORT = merged(HARD, {"loop": {"epochs": 2}, "adapter": {"dropout": 0.0}})


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("sd15"))


def lora(file, base, *changes, rank=4, alpha=3.0, form="kohya", parts=None):
    """A LoRA file with random weights, made for the base, and the change of each module in it."""
    config = configure(settings(base, **merged(*changes)))
    model = models.family(config.model.family).Model(config.model, CPU, torch.float32, config.rates)
    adapter = Adapter(AdapterConfig(rank=rank, alpha=alpha), model, parts or list(config.rates), 1)
    for _, weight in adapter.named():
        weight.data.normal_(0, 0.1)
    export.write(file, adapter, model, {}, "fp32", form)
    return {key: adapter.delta(*key) for key in adapter.layers}


def begun(folder, file, base, *changes, **own) -> Session:
    """A session of a new run from the file, right before its first step."""
    save_images(folder / "dataset")
    run = Project(folder).run("r")
    save_from_weights(run, str(file), merged(inherited(settings(base, **merged(*changes))), own))
    session = Session(run)
    list(session.prepare())
    return session


def assert_starts_from(session, changes) -> None:
    for key in session.adapter.layers:
        assert torch.allclose(session.adapter.delta(*key), changes[key], rtol=1e-5, atol=1e-8), key


# ---- what it begins with ---------------------------------------------------------------------------------------------


def test_every_module_begins_with_the_files_change_in_every_form_of_every_family(tmp_path, family, base):
    hard, text = family_settings(family, base)
    for form in models.config_class(family).key_layouts:
        file = tmp_path / f"{form}.safetensors"
        changes = lora(file, base, hard, text, form=form)
        session = begun(tmp_path / form, file, base, hard, text)
        assert session.config.adapter.rank == 4 and session.config.adapter.alpha == (3 if form == "kohya" else 4)
        assert len(session.adapter.layers) == len(changes) and session.notes == []
        assert_starts_from(session, changes)
        trained = {id(weight) for group in session.optimizer.param_groups for weight in group["params"]}
        assert trained == {id(weight) for _, weight in session.adapter.named()}  # no second adapter, no orphans


@pytest.mark.parametrize("names", ["diffusers", "peft"])
def test_files_of_other_tools_do_as_well(tmp_path, sd15, names):
    changes = lora(tmp_path / "kohya.safetensors", sd15)
    model = models.family("sd15").Model(configure(settings(sd15)).model, CPU, torch.float32)
    tensors = {}
    for (part, module), change in lora_file.read(tmp_path / "kohya.safetensors", model).items():
        name = f"{part}.{module}" if names == "diffusers" else f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = change.tensors["down"]
        tensors[f"{name}.lora_B.weight"] = change.scale * change.tensors["up"]
    save_file(tensors, tmp_path / "other.safetensors")
    assert_starts_from(begun(tmp_path / "p", tmp_path / "other.safetensors", sd15), changes)


def test_modules_of_several_ranks_and_alphas_begin_exactly_too(tmp_path, sd15):
    file = tmp_path / "a.safetensors"
    changes = lora(file, sd15)
    tensors = load_file(file)
    first, second = sorted({name.partition(".")[0] for name in tensors})[:2]
    tensors[f"{first}.alpha"] *= 2
    for side in ("down", "up"):  # the first half of the rank alone
        whole = tensors[f"{second}.lora_{side}.weight"]
        tensors[f"{second}.lora_{side}.weight"] = (whole[:2] if side == "down" else whole[:, :2]).contiguous()
    save_file(tensors, file)
    assert adapter_settings(file) == {"type": "lora", "rank": 4, "alpha": 3.0}
    session = begun(tmp_path / "p", file, sd15)
    names = {key: session.model.names(*key)["kohya"] for key in changes}
    for key, name in names.items():
        if name == first:
            changes[key] = 2 * changes[key]
        if name == second:
            down, up = (tensors[f"{name}.lora_{side}.weight"].flatten(1) for side in ("down", "up"))
            changes[key] = (3 / 2 * up @ down).reshape(changes[key].shape)
    assert_starts_from(session, changes)


def test_the_rank_and_alpha_are_the_files_unless_they_are_set(tmp_path, sd15):
    file = tmp_path / "a.safetensors"
    changes = lora(file, sd15, rank=3, alpha=6.0)
    # given -> rank, alpha
    cases = (
        ({"dropout": 0.1}, 3, 6.0),
        ({"rank": 7}, 7, 14.0),
        ({"rank": Typed("7"), "alpha": Typed("1")}, 7, 1.0),
        ({"alpha": 1.0, "type": "lora"}, 3, 1.0),
    )
    for number, (given, rank, alpha) in enumerate(cases):
        run = Project(tmp_path / "p").run(f"r{number}")
        config = save_from_weights(run, str(file), merged(inherited(settings(sd15)), {"adapter": given}))
        assert (config.adapter.rank, config.adapter.alpha) == (rank, alpha)
    session = begun(tmp_path / "larger", file, sd15, adapter={"rank": 7, "alpha": 1.0})
    assert session.adapter.config.rank == 7
    assert_starts_from(session, changes)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"rank": 2}, "adapter.rank is 2, and a.safetensors has rank 3.* set adapter.rank to 3 or more"),
        ({"type": "lokr"}, "type is 'lokr'|adapter.type is lokr, and a.safetensors is a lora"),
    ],
)
def test_a_smaller_rank_and_another_type_than_the_files_are_refused(tmp_path, sd15, given, reason):
    lora(tmp_path / "a.safetensors", sd15, rank=3)
    with pytest.raises(ConfigError, match=reason):
        save_from_weights(
            Project(tmp_path / "p").run("r"),
            str(tmp_path / "a.safetensors"),
            merged(inherited(settings(sd15)), {"adapter": given}),
        )
    # chosen in the form, where the file is read when training begins
    run = Project(tmp_path / "q").run("r")
    save_images(run.project.folder / "dataset")
    by_hand = {"rank": 2, "network_weights": str(tmp_path / "a.safetensors")}
    save_config(run, configure(settings(sd15, adapter=by_hand)))
    with pytest.raises(LoraFileError, match="rank is 3, the run's is 2; set the rank to 3"):
        list(Session(run).prepare())


# ---- what does not go together ---------------------------------------------------------------------------------------


def test_parts_that_are_not_trained_are_named_and_those_the_file_lacks_start_from_scratch(tmp_path, sd15):
    file, text = tmp_path / "a.safetensors", {"optimizer": {"text_encoder_lr": 1e-2}}
    changes = lora(file, sd15, text)
    session = begun(tmp_path / "p", file, sd15)
    assert_starts_from(session, changes)
    (note,) = session.notes
    assert "does not train are left out" in note and "of text_encoder" in note
    assert "text_encoder" not in session.model.loaded()
    lora(file, sd15)
    session = begun(tmp_path / "q", file, sd15, text)
    assert "start from scratch" in session.notes[0]
    assert warnings(list(Session(session.run).prepare())) == session.notes
    assert not any(session.adapter.delta(*key).any() for key in session.adapter.layers if key[0] == "text_encoder")


def test_a_file_of_which_nothing_is_trained_is_refused(tmp_path, sd15):
    file = tmp_path / "a.safetensors"
    lora(file, sd15, {"optimizer": {"text_encoder_lr": 1e-2}}, parts=["text_encoder"])
    with pytest.raises(LoraFileError, match="adapter on unet: no module of it is trained"):
        begun(tmp_path / "p", file, sd15)


OTHERS = {
    "LoHa": {f"hada_w{i}_{side}": (4, 8) for i in (1, 2) for side in "ab"},
    "LoKr": {"lokr_w1": (2, 2), "lokr_w2": (4, 4)},
    "a convolution": {"lora_down.weight": (4, 8, 3, 3), "lora_up.weight": (8, 4, 1, 1)},
    "DoRA": {"lora_down.weight": (4, 8), "lora_up.weight": (8, 4), "dora_scale": (8, 1)},
}


@pytest.mark.parametrize("shapes", OTHERS.values(), ids=OTHERS)
def test_a_file_that_no_adapter_can_hold_is_refused_before_anything_is_written(tmp_path, sd15, shapes):
    file, module = tmp_path / "a.safetensors", "lora_unet_down_blocks_0_attentions_0_proj_in"
    save_file({f"{module}.{role}": torch.ones(shape) for role, shape in shapes.items()}, file)
    run = Project(tmp_path / "p").run("r")
    with pytest.raises(LoraFileError, match="1 of 1 modules are no LoRA of a linear layer.*Start from another file"):
        save_from_weights(run, str(file), inherited(settings(sd15)))
    assert not run.folder.exists()


def test_a_run_that_has_begun_does_not_start_from_a_file(tmp_path, sd15):
    file = tmp_path / "a.safetensors"
    lora(file, sd15)
    run = new_run(tmp_path / "p", sd15, SHORT)
    until(run, at(Started, 0))
    with pytest.raises(ProjectError, match=r"has trained already.*another name"):
        save_from_weights(run, str(file), inherited(settings(sd15)))


# ---- a whole run -----------------------------------------------------------------------------------------------------


def test_a_run_needs_its_file_until_its_first_state_and_ends_bitwise_where_an_uncut_one_does(tmp_path, sd15):
    file = tmp_path / "mine.safetensors"
    lora(file, sd15)
    run, uncut = Project(tmp_path / "p").run("r"), Project(tmp_path / "q").run("r")
    for new in (run, uncut):
        save_images(new.project.dataset)
        save_from_weights(new, str(file), inherited(settings(sd15, **SHORT)))
    list(train(uncut))
    until(run, at(Started, 0))
    lora(tmp_path / "other.safetensors", sd15, alpha=1.0)
    kept = shutil.copy(file, tmp_path / "kept.safetensors")
    shutil.copy(tmp_path / "other.safetensors", file)
    with pytest.raises(RunChanged, match="network_weights: "):
        list(train(run))
    file.unlink()
    with pytest.raises(SourceError):
        list(train(run))
    shutil.copy(kept, file)
    until(run, at(Saved, 2))
    file.unlink()
    list(train(run))
    assert_same_end(run, uncut)
    with safe_open(run.lora_file(4), framework="pt") as written:
        assert written.metadata()["lorakit.network_weights"] == "mine.safetensors"
