"""A new variant is one class: one that only tests know is trained, resumed, written, read and sized like plain LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from sessions import HARD, assert_same_bits, at, new_run, until
from tiny import save_sd15, settings
from trained_lokr import TrainedLokr

from lorakit.config import ConfigError
from lorakit.events import Saved
from lorakit.lora import export, variants
from lorakit.lora import file as lora_file
from lorakit.lora.names import LoraFileError
from lorakit.lora.variants import AdapterConfig
from lorakit.run.checkpoint import newest
from lorakit.run.config import configure, read_config
from lorakit.run.create import inherited, save_config, save_from_weights
from lorakit.training import sizes
from lorakit.training.loop import Session, train

LOKR = {"adapter": {"type": "lokr", "rank": 2, "alpha": 3, "factor": 4, "dropout": 0.0}, "loop": {"epochs": 1}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_sd15(tmp_path_factory.mktemp("base"))


pytestmark = pytest.mark.usefixtures("lokr_is_trained")


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, base):
    run = new_run(tmp_path_factory.mktemp("uncut"), base, HARD, LOKR)
    list(train(run))
    return run


def session_of(run) -> Session:
    session = Session(run)
    session._attach()
    return session


def test_its_own_options_are_settings_of_a_run(uncut):
    config = read_config(uncut).adapter
    assert type(config) is TrainedLokr.Config and config.factor == 4
    with pytest.raises(ConfigError, match=r"adapter.factor is not a setting"):
        configure(settings(Path("none"), adapter={"factor": 4}))
    with pytest.raises(ConfigError, match=r"adapter.factor is 99; allowed is -1 to 64"):
        configure(settings(Path("none"), adapter={"type": "lokr", "factor": 99}))


def test_a_run_of_it_that_was_cut_ends_bitwise_where_an_uncut_one_does(tmp_path, base, uncut):
    run = new_run(tmp_path, base, HARD, LOKR, {"save": {"every_steps": 1}})
    until(run, at(Saved, 1))
    list(train(run))
    assert_same_bits(newest(run.states).state, newest(uncut.states).state)
    assert newest(run.states).state["step"] == 2


def test_its_files_hold_the_trained_change_and_name_their_network_module(uncut):
    session = session_of(uncut)
    adapter, file = session.adapter, uncut.lora_file(2)
    adapter.load(newest(uncut.states).state["adapter"])
    assert any(adapter.delta(*key).any() for key in adapter.layers)
    changes = lora_file.read(file, session.model, adapter.layers)
    assert {change.variant for change in changes.values()} == {TrainedLokr} and changes.keys() == adapter.layers.keys()
    # some of the modules have a rank and some have full matrices only, which take the scale into them
    assert {change.rank for change in changes.values()} == {None, 2}
    for key, change in changes.items():
        torch.testing.assert_close(change.delta(), adapter.delta(*key), rtol=2e-3, atol=5e-6)
    assert_same_bits(
        {name: weight.shape for name, weight in export.weights(file, adapter, session.model).items()},
        {name: weight.shape for name, weight in adapter.weights().items()},
    )
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_network_module"] == "lycoris.kohya"


def test_a_state_and_a_file_are_as_large_as_was_computed_before(uncut):
    session, config = session_of(uncut), read_config(uncut)
    state = next(uncut.states.glob("*/state.pt")).stat().st_size
    assert sizes.state_bytes(session.adapter, config) == pytest.approx(state, rel=0.02)
    with safe_open(uncut.lora_file(2), "pt") as opened:
        metadata = opened.metadata()
    file = uncut.lora_file(2).stat().st_size
    assert sizes.lora_bytes(session.adapter, session.model, config, metadata) == pytest.approx(file, rel=0.02)


def test_a_new_run_starts_from_its_file_and_no_other_variant_takes_it(tmp_path, base, uncut):
    file = uncut.lora_file(2)
    run = new_run(tmp_path, base, name="first").project.run("second")
    config = save_from_weights(run, str(file), {**inherited(settings(base)), "adapter": {"type": "lokr", "factor": 4}})
    assert (config.adapter.type, config.adapter.rank, config.adapter.alpha) == ("lokr", 2, 3.0)
    session = session_of(run)
    for key, change in lora_file.read(file, session.model, session.adapter.layers).items():
        torch.testing.assert_close(session.adapter.delta(*key), change.delta(), rtol=1e-5, atol=1e-7)
    other = run.project.run("third")
    save_config(other, configure(settings(base, adapter={"network_weights": str(file)})))
    with pytest.raises(LoraFileError, match="holds a LoKr, the run trains a LoRA; set the adapter type to lokr"):
        session_of(other)


def test_a_variant_that_is_only_read_cannot_be_chosen():
    with pytest.raises(ConfigError, match=r"adapter.type is 'loha'; allowed are lokr, lora"):
        configure(settings(Path("none"), adapter={"type": "loha"}))
    assert variants.config_class("loha") is AdapterConfig
