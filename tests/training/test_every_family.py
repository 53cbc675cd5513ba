"""What the kit promises of a run holds for every model family."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from sessions import (
    assert_same_bits,
    assert_same_end,
    at,
    copy_of,
    family_settings,
    killed,
    merged,
    new_run,
    until,
    warnings,
)
from tiny import conditioning
from tiny import settings as tiny_settings

from lorakit import cli, models
from lorakit.config import ConfigError, choices_of
from lorakit.diffusion.weightings import LossConfig
from lorakit.events import Finished, Progress, Sampled, Saved
from lorakit.generation.generator import OFF, Generator
from lorakit.generation.grid import Axis, Done, grid
from lorakit.lora import export
from lorakit.lora.adapter import Adapter, AdapterConfig
from lorakit.models import Size
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.memory import OutOfMemory
from lorakit.run.sampling import SAMPLERS, SamplingConfig
from lorakit.run.stages import cut_captions
from lorakit.training.loop import Session, train

CPU = torch.device("cpu")
CAPTIONS = ["mofu, girl", "a boy with a red hat, smile"]
SAMPLES = {"sample": {"prompts": CAPTIONS, "every_steps": 2}}


@pytest.fixture(scope="module")
def hard(family, base) -> dict:
    return family_settings(family, base)[0]


@pytest.fixture(scope="module")
def text(family, base) -> dict:
    return family_settings(family, base)[1]


@pytest.fixture(scope="module", params=("frozen text", "trained text"))
def settings(request, hard, text) -> dict:
    return merged(hard, text) if request.param == "trained text" else hard


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, base, settings):
    """An uncut run: 6 steps, 2 an epoch, saved after steps 2, 4 and 6."""
    run = new_run(tmp_path_factory.mktemp("uncut") / "project", base, settings)
    assert [event.step for event in train(run) if isinstance(event, Saved)] == [2, 4, 6]
    return run


def opened(base, settings: dict, dtype: torch.dtype = torch.float32):
    config = configure(tiny_settings(base, **settings))
    return models.family(config.model.family).Model(config.model, CPU, dtype, config.rates)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_cut_and_has_samples_ends_bitwise_where_an_uncut_one_without_does(
    tmp_path, base, settings, uncut
):
    run = new_run(tmp_path, base, settings, SAMPLES)
    seen = [event for cut in (at(Saved, 2), at(Saved, 4), at(Finished, 6)) for event in until(run, cut)]
    # each session but the first begins with the samples that the one before was cut off before
    assert len({(event.step, event.image) for event in seen if isinstance(event, Sampled)}) == 6
    assert_same_end(run, uncut)


@pytest.mark.slow
def test_a_trainer_killed_again_and_again_ends_there_too(tmp_path, base, hard, text):
    new_run(tmp_path / "p", base, hard, text, {"save": {"every_steps": 1}})
    found = killed("often", folder=str(tmp_path / "p"), name="r", kills=4, seed=0)
    assert sum(found["phases"].values()) == 4
    for folder in found["runs"]:
        assert_same_end(Project(folder).run("r"), Project(tmp_path / "p-uncut").run("r"))


def test_a_run_without_caches_with_gradient_checkpointing_ends_bitwise_where_a_plain_one_does(
    tmp_path, base, settings, uncut
):
    no_caches = {"data": {"cache_latents": False, "cache_text": False}}
    run = new_run(tmp_path, base, settings, no_caches, {"memory": {"gradient_checkpointing": True}})
    list(train(run))
    assert_same_end(run, uncut)


@pytest.mark.parametrize("settings", ["frozen text"], indirect=True)
def test_samples_that_do_not_fit_are_left_out_and_change_nothing(tmp_path, base, settings, uncut, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run = new_run(tmp_path, base, settings, SAMPLES)
    monkeypatch.setattr(models.family(settings["model"]["family"]).Model, "sample", full)
    seen = list(train(run))
    assert [text.partition(":")[0] for text in warnings(seen)] == [
        f"Out of memory while generating samples after step {step}" for step in (2, 4, 6)
    ]
    assert_same_end(run, uncut)


def test_caches_are_filled_once_and_then_only_trained_parts_are_loaded(base, settings, uncut, tmp_path):
    again = new_run(copy_of(uncut, tmp_path / "p").project.folder, base, settings, name="next")
    session = Session(again)
    assert not [event for event in session.prepare() if isinstance(event, Progress)]
    session.step(1)
    assert set(session.model.loaded()) <= set(session.config.rates) | {"text_conditioner"}


def test_dropping_every_caption_is_training_on_empty_captions(tmp_path, base, hard):
    losses = []
    for rate in (1.0, 0.0):
        session = Session(new_run(tmp_path / str(rate), base, hard, {"data": {"caption_dropout_rate": rate}}))
        if rate == 0:
            session.feed.samples = tuple(dataclasses.replace(s, caption="") for s in session.feed.samples)
        list(session.prepare())
        losses += [session.step(step).loss for step in (1, 2)]
    assert losses[:2] == losses[2:]


# ---- files and images ----------------------------------------------------------------------------------------------


def test_every_file_of_a_run_is_put_on_the_base_as_it_was_trained(settings, uncut):
    generator = Generator(uncut)
    trained = Session(uncut)
    list(trained.prepare())
    assert generator.use(6) == len(trained.adapter.layers)
    for key in trained.adapter.layers:
        wanted = trained.adapter.delta(*key)
        assert torch.allclose(generator._adapter.delta(*key), wanted, atol=2e-3 * wanted.abs().max() + 1e-6)


def test_every_key_layout_holds_the_trained_change_and_is_proved(tmp_path, base, family, hard, text):
    settings = merged(hard, text)
    model = opened(base, settings)
    adapter = Adapter(AdapterConfig(rank=4, alpha=3), model, list(model.trained), 1)
    for _, weight in adapter.named():
        weight.data.normal_(0, 0.1)
    for layout in model.config.key_layouts:
        file = tmp_path / f"{layout}.safetensors"
        assert export.write(file, adapter, model, {}, "fp32", layout) == len(adapter.layers)
        back = export.weights(file, adapter, model)
        for name, weight in adapter.weights().items():
            assert torch.allclose(back[name], weight, rtol=1e-6, atol=0)


def test_a_grid_shows_the_base_and_what_was_learned(uncut, base, settings):
    sampling = SamplingConfig(
        width=64, height=64, steps=2, sampler=models.config_class(settings["model"]["family"]).samplers[0]
    )
    axes = Axis("checkpoint", (OFF, 2, 6)), Axis("strength", (1.0,))
    *painted, done = grid(uncut, *axes, prompt="mofu, girl", sampling=sampling)
    assert isinstance(done, Done) and done.image.exists()
    assert len({event.file.read_bytes() for event in painted}) == 3
    assert "secretfolder" not in done.record.read_text()


@pytest.mark.parametrize("settings", ["frozen text"], indirect=True)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_paints_or_is_refused_by_name(uncut, base, settings, sampler):
    config = models.config_class(settings["model"]["family"])
    sampling = SamplingConfig(width=64, height=64, steps=2, sampler=sampler)
    axes = Axis("checkpoint", (OFF,)), Axis("strength", (1.0,))
    if sampler in config.samplers:
        *_, done = grid(uncut, *axes, prompt="mofu", sampling=sampling, name=sampler)
        assert isinstance(done, Done)
    else:
        with pytest.raises(ConfigError, match=f"sampler is {sampler}"):
            list(grid(uncut, *axes, prompt="mofu", sampling=sampling))


def test_the_terminal_trains_and_exports(tmp_path, base, family, capsys):
    run = new_run(tmp_path / "p", base, family_settings(family, base)[0], name="other")
    small = ["data.resolution=64", "data.min_bucket_reso=64", "data.max_bucket_reso=64", "adapter.rank=2"]
    settings = [f"model.family={family}", f"model.source={base}", "loop.steps=1", "loop.batch_size=1", *small]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    assert cli.main(["train", str(run.project.folder), "--run", "t", *arguments]) == 0
    assert cli.main(["export", str(run.project.folder), "--run", "t", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "finished after step 1" in shown and "modules matched" in shown
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


def test_files_tell_nothing_private(uncut):
    from safetensors import safe_open

    with safe_open(uncut.lora_file(6), framework="pt") as file:
        metadata = file.metadata()
    assert "secretfolder" not in json.dumps(metadata) and str(uncut.project.folder) not in json.dumps(metadata)
    assert metadata["modelspec.architecture"].endswith("/lora") and metadata["ss_base_model_version"]


def test_a_grid_that_does_not_fit_ends_with_one_message(uncut, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(Generator(uncut).model), "sample", full)
    sampling = SamplingConfig(width=64, height=64, steps=2, sampler=Generator(uncut).config.model.samplers[0])
    with pytest.raises(OutOfMemory, match="(?s)Out of memory while generating images.*smaller images"):
        list(
            grid(
                uncut,
                Axis("checkpoint", (OFF,)),
                Axis("strength", (1.0,)),
                prompt="new",
                sampling=sampling,
                name="full",
            )
        )


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_what_a_family_starts_from_is_a_run_that_works_untouched(family):
    config = configure({"model": {"family": family, "source": "somewhere"}})
    for part, values in config.model.defaults.items():
        for name, value in values.items():
            assert getattr(getattr(config, part), name) == value
    assert list(config.rates) == [models.family(family).Model.denoiser]  # text parts stay frozen
    assert config.key_layout == config.model.key_layouts[0]


def test_what_a_family_refuses_is_refused_with_the_reason(family):
    for name, reason in models.config_class(family).unsupported.items():
        part, _, setting = f"model.{name}".rpartition(".")[0].rpartition(".")[2], ".", name.rpartition(".")[2]
        plain = configure({"model": {"family": family, "source": "somewhere"}})
        changed = {"model": {"family": family, "source": "somewhere"}}
        if "." in name:
            field = type(getattr(plain, part)).__dataclass_fields__[setting]
            changed[part] = {setting: other_than(field)}
        else:
            changed["model"][name] = 2
        with pytest.raises(ConfigError) as caught:
            configure(changed)
        assert reason in str(caught.value)


def other_than(field: dataclasses.Field):
    """An allowed value of a field that is not its default."""
    if choices := choices_of(field):
        return next(value for value in choices if value != field.default)
    return type(field.default)(field.default + 0.01 if isinstance(field.default, float) else field.default + 1)


def test_each_part_changes_its_fingerprint_with_its_files_alone(tmp_path, family, base, hard):
    import shutil

    other = shutil.copytree(base, tmp_path / "other")
    before, after = opened(base, hard), opened(other, {**hard, "model": {**hard["model"], "source": str(other)}})
    assert {part: before.fingerprint(part) for part in before.parts} == {
        part: after.fingerprint(part) for part in after.parts
    }
    weights = next((other / before.denoiser).glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = opened(other, {**hard, "model": {**hard["model"], "source": str(other)}})
    differing = [part for part in before.parts if before.fingerprint(part) != changed.fingerprint(part)]
    assert differing == [before.denoiser]


def test_captions_that_are_cut_are_told_before_the_first_step(tmp_path, base, hard):
    run = new_run(tmp_path, base, hard)
    model = opened(base, hard)
    limit = model.config.max_token_length
    caption = run.project.dataset / "1_mofu" / "00.txt"
    words = "girl hat " * limit
    while model.token_count(words) > limit:
        words = words.rpartition("girl")[0]
    for text, cut in ((words, False), (words + "girl girl girl hat", True)):
        caption.write_text(text)
        session = Session(run)
        notes = cut_captions(session.stages, session.model)
        assert bool(notes) == cut and all("00.png" in note and f"after {limit}" in note for note in notes)


def test_a_batch_is_the_sum_of_its_samples(base, hard):
    model = opened(base, hard)
    sizes = [Size((100, 80), (3, 0), (64, 64)), Size.whole(64, 64)]
    texts = [model.encode_text(caption) for caption in CAPTIONS]
    generator = torch.Generator().manual_seed(1)
    pixels = [torch.rand(3, 64, 64, generator=generator) * 2 - 1 for _ in texts]
    x0 = model.latents([model.encode_image(image) for image in pixels], generator)
    eps, t = model.sample_noise(x0, generator, LossConfig())
    with torch.no_grad():
        whole = model.loss(x0, eps, t, model.condition(texts, sizes), LossConfig())
        for i, (words, size) in enumerate(zip(texts, sizes, strict=True)):
            alone = model.loss(
                x0[i : i + 1], eps[i : i + 1], t[i : i + 1], model.condition([words], [size]), LossConfig()
            )
            assert torch.allclose(alone, whole[i : i + 1], rtol=1e-4)


def test_every_module_has_a_name_of_its_own_in_every_key_layout(base, hard, text):
    model = opened(base, merged(hard, text))
    keys = [(part, module) for part in model.config.rates for module in model.targets(part)]
    for layout in model.config.key_layouts:
        assert len({model.names(*key)[layout] for key in keys}) == len(keys) > 0


def adapted(base, settings: dict, dropout: float = 0.0):
    """A model with an adapter on all its trained parts whose weights are random, so that gradients are not zero."""
    model = opened(base, settings)
    adapter = Adapter(AdapterConfig(rank=2, dropout=dropout), model, sorted(model.trained), 1)
    draws = torch.Generator().manual_seed(2)
    adapter.load({name: 0.1 * torch.randn(w.shape, generator=draws) for name, w in adapter.weights().items()})
    return model, adapter


def losses(model) -> torch.Tensor:
    """Of two captions on a fixed image."""
    draws = torch.Generator().manual_seed(4)
    encoded = model.encode_image(torch.rand(3, 64, 64, generator=draws) * 2 - 1)
    x0 = model.latents([encoded] * 2, draws)
    eps, t = model.sample_noise(x0, draws, LossConfig())
    return model.loss(x0, eps, t, conditioning(model, CAPTIONS), LossConfig())


def backward(model) -> int:
    """One backward pass through all parts; returns how many bytes it kept for it."""
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = losses(model).sum()
    loss.backward()
    return sum(kept)


def test_gradients_reach_every_adapter_weight_and_no_other(base, settings):
    model, adapter = adapted(base, settings)
    backward(model)
    for name, weight in adapter.named():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().max() > 0, name
    mine = {id(weight) for _, weight in adapter.named()}
    for part in model.loaded():
        assert all(weight.grad is None for weight in model.load(part).parameters() if id(weight) not in mine)


def test_gradient_checkpointing_keeps_less(base, settings):
    model, _ = adapted(base, settings)
    kept = backward(model)
    model.enable_gradient_checkpointing()
    assert backward(model) < kept / 2


def test_generating_leaves_dropout_out_and_puts_it_back(base, hard):
    model, _ = adapted(base, hard, dropout=0.5)
    with torch.no_grad():
        assert not torch.equal(losses(model), losses(model))
        with model.eval_mode():
            assert torch.equal(losses(model), losses(model))
        assert not torch.equal(losses(model), losses(model))


def test_a_run_finishes_with_the_event_that_names_its_file(uncut):
    finished = [event for event in train(uncut) if isinstance(event, Finished)]
    assert [event.lora for event in finished] == [str(uncut.lora_file(6).relative_to(uncut.folder))]
    assert_same_bits({"steps": uncut.lora_steps()}, {"steps": [2, 4, 6]})
