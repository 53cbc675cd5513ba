"""Stop signals end a session cleanly; numbers that are not finite never reach the weights or a file."""

from __future__ import annotations

import math
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file
from sessions import (
    HARD,
    TEXT,
    assert_same_bits,
    assert_same_end,
    at,
    killed,
    merged,
    new_run,
    tensors,
    until,
    warnings,
)
from tiny import save_sd15

from lorakit import events
from lorakit.errors import UserError
from lorakit.events import Finished, Progress, Saved, Started, Stepped, Stopped
from lorakit.project import Project
from lorakit.run import checkpoint
from lorakit.training import step as step_module
from lorakit.training.loop import Session, train
from lorakit.training.nonfinite import TrainingDiverged

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, base):
    run = new_run(tmp_path_factory.mktemp("uncut") / "project", base, HARD, TEXT)
    list(train(run))
    return run


# ---- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_finishes_the_step_saves_it_and_leaves(tmp_path, base, uncut):
    run = new_run(tmp_path, base, HARD, TEXT)
    before = [signal.getsignal(number) for number in SIGNALS]
    for number, step in zip(SIGNALS, (1, 3, 5), strict=True):  # HARD saves after steps 2, 4 and 6
        seen = []
        for event in train(run):
            seen.append(event)
            if isinstance(event, Stepped) and event.step == step:
                signal.raise_signal(number)
        assert [(type(event), event.step) for event in seen[-3:]] == [(Stepped, step), (Saved, step), (Stopped, step)]
        assert [signal.getsignal(number) for number in SIGNALS] == before
        assert checkpoint.newest(run.states).state["step"] == step
        assert isinstance(list(events.read(run.log))[-1][1], Stopped)
    list(train(run))
    assert_same_end(run, uncut)


def test_a_signal_between_steps_is_heeded_too(tmp_path, base, uncut):
    run = new_run(tmp_path, base, HARD, TEXT)
    for kind, step, most in ((Progress, 0, 0), (Started, 0, 1), (Saved, 2, 1)):
        seen, sent = [], False
        for event in train(run):
            seen.append(event)
            if isinstance(event, kind) and getattr(event, "step", 0) == step and not sent:
                sent = signal.raise_signal(signal.SIGINT) is None
        assert isinstance(seen[-1], Stopped)
        assert len([event for event in seen if isinstance(event, Stepped)]) <= most, kind
    list(train(run))
    assert_same_end(run, uncut)


def test_a_signal_during_the_last_step_ends_with_finished(tmp_path, base, uncut):
    run = new_run(tmp_path, base, HARD, TEXT)
    for event in train(run):
        if isinstance(event, Stepped) and event.step == 6:
            signal.raise_signal(signal.SIGTERM)
    assert isinstance(event, Finished)
    assert_same_end(run, uncut)


def test_a_second_signal_is_not_swallowed(tmp_path, base):
    run = new_run(tmp_path, base, HARD, TEXT)
    for number, step in zip(SIGNALS, (1, 2, 3), strict=True):
        got = []
        mine = signal.signal(number, lambda number, _, got=got: got.append(number))
        try:
            for event in train(run):
                if isinstance(event, Stepped) and event.step == step:
                    signal.raise_signal(number)
                    assert got == []
                    signal.raise_signal(number)
                    assert got == [number]
            signal.raise_signal(number)
            assert got == [number, number]
        finally:
            signal.signal(number, mine)


def test_handlers_are_restored_when_a_session_is_closed_or_fails(tmp_path, base):
    before = [signal.getsignal(number) for number in SIGNALS]
    until(new_run(tmp_path / "a", base, HARD), at(Stepped, 1))
    assert [signal.getsignal(number) for number in SIGNALS] == before
    run = new_run(tmp_path / "b", base, HARD)
    (run.project.dataset / "1_mofu").rename(run.project.folder / "elsewhere")
    with pytest.raises(UserError):
        list(train(run))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_training_outside_of_the_main_thread_needs_no_signals(tmp_path, base, uncut):
    run = new_run(tmp_path, base, HARD, TEXT)
    thread = threading.Thread(target=lambda: list(train(run)))
    thread.start()
    thread.join()
    assert_same_end(run, uncut)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, base):
    """The folder in which `killed.py stop` worked, and what it found."""
    folder = tmp_path_factory.mktemp("stopped")
    new_run(folder / "p", base, HARD, TEXT, {"loop": {"epochs": 6}})
    return folder, killed("stop", folder=str(folder / "p"), name="r")


@pytest.mark.parametrize("case", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_command_that_gets_a_signal_ends_with_status_0_and_goes_on_when_run_again(stopped, case):
    folder, found = stopped
    assert found[case] == [0, 0, "Stopped"]
    assert_same_end(Project(folder / f"p-{case}").run("r"), Project(folder / "p-uncut").run("r"))


def test_a_process_that_gets_two_signals_ends_at_once_and_loses_only_unsaved_steps(stopped):
    folder, found = stopped
    assert found["twice"] == [signal.SIGTERM, 0, "Stepped"]
    assert_same_end(Project(folder / "p-twice").run("r"), Project(folder / "p-uncut").run("r"))


# ---- not a number ----------------------------------------------------------------------------------------------------

STEADY = {"optimizer": {"max_grad_norm": 0.0}}
SQUARES = ((64, 64),) * 5  # in batches of 2 and steps of 3 batches: one step an epoch, of 2, 2 and 1 samples
EACH_STEP = {
    "loop": {"gradient_accumulation_steps": 3},
    "save": {"every_steps": 1, "every_epochs": 0, "keep_states": 99},
}


@pytest.fixture
def limit(monkeypatch):
    """So many steps in a row without a finite gradient end a run; fewer than usual."""
    monkeypatch.setattr("lorakit.training.nonfinite.MAX_NONFINITE_STEPS", 6)
    return 6


class SpoiledSession:
    """A whole session in which `spoil(losses, number of the micro-batch)` stands for the model's loss.

    Micro-batches are numbered over all steps, each of which has three; what is computed again keeps its number.
    """

    def __init__(self, run, spoil):
        self.session, self.events, self.inputs, self.losses, self.gradients = Session(run), [], {}, {}, []
        self.inner, self.spoil = self.session.model.loss, spoil
        self.session.model.loss = self.loss
        self.failed_with = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step_module, "micro_loss", self.numbered(step_module.micro_loss))
            try:
                for event in self.session.events(threading.Event()):
                    self.events.append(event)
                    if isinstance(event, Started):
                        self.session.optimizer.register_step_pre_hook(self.remember)
            except UserError as error:
                self.failed_with = error

    def numbered(self, micro_loss):
        def noted(batch, feed, model, config, keys):
            _, step, micro = keys
            self.number = 3 * (step - 1) + micro
            return micro_loss(batch, feed, model, config, keys)

        return noted

    def loss(self, *inputs):
        self.inputs[self.number] = inputs
        self.losses[self.number] = self.inner(*inputs)
        return self.spoil(self.losses[self.number], self.number)

    def remember(self, optimizer, *_):
        self.gradients.append([weight.grad.clone() for weight in optimizer.param_groups[0]["params"]])

    def steps(self):
        return [event for event in self.events if isinstance(event, Stepped)]


def spoil_all(losses, number):
    return losses * math.nan


def spoil_gradient(losses, number):
    """Finite losses with a gradient that is not."""
    losses.register_hook(lambda gradient: gradient * math.nan)
    return losses


def mean_gradient(run, inputs):
    """The gradient, at the beginning of a run, of the plain mean over the samples of several micro-batches."""
    session = Session(run)
    stream = session.events(threading.Event())
    while not isinstance(next(stream), Started):
        pass
    torch.cat([session.model.loss(*one) for one in inputs]).mean().backward()
    return [weight.grad for weight in session.optimizer.param_groups[0]["params"]]


def loaded(file):
    """A training state, on the CPU."""
    return torch.load(file, map_location="cpu", weights_only=True)


def assert_all_files_are_finite(run):
    """Every number in every state and LoRA file of the run."""
    files = [*run.states.glob("*/state.pt"), *run.loras.glob("*.safetensors")]
    assert files
    for file in files:
        data = load_file(file) if file.suffix == ".safetensors" else loaded(file)
        for path, value in tensors(data):
            assert not isinstance(value, torch.Tensor) or torch.isfinite(value).all(), f"{file.name} {path}"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_micro_batch_is_left_out_and_the_gradient_is_the_mean_over_the_others(tmp_path, base, bad):
    settings = merged(STEADY, EACH_STEP, {"loop": {"epochs": 1}})
    run = new_run(tmp_path, base, settings, sizes=SQUARES)
    spoiled = SpoiledSession(run, lambda losses, number: losses * bad if number == 1 else losses)
    (stepped,), (gradient,) = spoiled.steps(), spoiled.gradients
    good = torch.cat([spoiled.losses[0], spoiled.losses[2]])
    assert stepped.skipped == len(spoiled.losses[1]) == 5 - len(good)
    assert stepped.loss == pytest.approx(good.mean().item(), rel=1e-6)
    (told,) = warnings(spoiled.events)
    assert "Step 1" in told and f"{stepped.skipped} samples" in told
    reference = mean_gradient(
        new_run(tmp_path, base, settings, name="reference"), [spoiled.inputs[0], spoiled.inputs[2]]
    )
    assert max(part.abs().max() for part in gradient) > 1e-4
    for found, wanted in zip(gradient, reference, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert_all_files_are_finite(run)


def test_one_bad_sample_among_many_steps_is_counted_and_reported_once(tmp_path, base):
    run = new_run(tmp_path, base, EACH_STEP, {"loop": {"epochs": 4}}, sizes=SQUARES)
    spoiled = SpoiledSession(run, lambda losses, number: losses * math.nan if number % 3 == 1 else losses)
    assert all(
        step.skipped in (1, 2) and step.loss is not None and step.grad_norm is not None for step in spoiled.steps()
    )
    assert len(warnings(spoiled.events)) == 1
    assert isinstance(spoiled.events[-1], Finished)
    assert_all_files_are_finite(run)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_an_image_that_the_vae_makes_not_finite_ends_the_run_with_its_name(tmp_path, base, cached):
    run = new_run(tmp_path, base, {"data": {"cache_latents": cached}}, sizes=SQUARES)
    session = Session(run)
    inner = session.model.encode_image
    session.model.encode_image = lambda pixels: {name: value / 0 for name, value in inner(pixels).items()}
    with pytest.raises(UserError, match=r"1_mofu/\d\d.png becomes not-a-number"):
        list(session.events(threading.Event()))


@pytest.mark.parametrize("spoil", [spoil_all, spoil_gradient])
def test_a_step_without_any_finite_gradient_changes_nothing(tmp_path, base, spoil):
    run = new_run(tmp_path, base, EACH_STEP, {"loop": {"epochs": 3}}, sizes=SQUARES)
    spoiled = SpoiledSession(run, lambda losses, number: spoil(losses, number) if 3 <= number < 6 else losses)  # step 2
    before, after = (loaded(run.states / name / "state.pt") for name in ("00000001", "00000002"))
    assert_same_bits([after["adapter"], after["optimizer"]["state"]], [before["adapter"], before["optimizer"]["state"]])
    assert [step.grad_norm is None for step in spoiled.steps()] == [False, True, False]
    assert len(warnings(spoiled.events)) == 1
    assert_all_files_are_finite(run)


@pytest.mark.parametrize("spoil", [spoil_all, spoil_gradient])
def test_many_bad_steps_in_a_row_end_the_run_with_the_likely_causes(tmp_path, base, spoil, limit):
    run = new_run(tmp_path, base, EACH_STEP, {"loop": {"epochs": 40}, "save": {"every_steps": 5}}, sizes=SQUARES)
    spoiled = SpoiledSession(run, lambda losses, number: spoil(losses, number) if number >= 3 * 2 else losses)
    assert isinstance(spoiled.failed_with, TrainingDiverged)
    assert spoiled.steps()[-1].step == 2 + limit
    for cause in ("learning rate is too high", "base or VAE", "last saved state is kept"):
        assert cause in str(spoiled.failed_with)
    assert len(warnings(spoiled.events)) == 1
    assert_all_files_are_finite(run)


def test_bad_steps_with_good_ones_between_them_do_not_end_the_run(tmp_path, base, limit):
    run = new_run(
        tmp_path, base, EACH_STEP, {"loop": {"epochs": 2 * limit + 2}, "save": {"every_steps": 0}}, sizes=SQUARES
    )
    # of every 2 steps one is bad as a whole, and the other in one of its micro-batches
    spoiled = SpoiledSession(run, lambda losses, number: losses * (math.nan if number % 6 in (0, 1, 2, 3) else 1.0))
    assert spoiled.failed_with is None and isinstance(spoiled.events[-1], Finished)


def test_a_run_that_was_cut_among_bad_steps_counts_on(tmp_path, base, limit):
    settings = merged(EACH_STEP, {"loop": {"epochs": 40}})
    run = new_run(tmp_path, base, settings, sizes=SQUARES)
    session = Session(run)
    inner = session.model.loss
    session.model.loss = lambda *inputs: spoil_all(inner(*inputs), 0)
    for event in session.events(threading.Event()):
        if at(Saved, 4)(event):
            break
    spoiled = SpoiledSession(run, spoil_all)
    assert isinstance(spoiled.failed_with, TrainingDiverged) and spoiled.steps()[-1].step == limit


@pytest.mark.parametrize("exports", [True, False], ids=["with a LoRA file", "the state alone"])
@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, base, exports, where):
    run = new_run(tmp_path, base, EACH_STEP, sizes=SQUARES)
    session = Session(run)
    for event in session.events(threading.Event()):
        if at(Saved, 1)(event):
            break
    states = sorted(run.states.rglob("*"))
    weight = session.optimizer.param_groups[0]["params"][0]
    (weight.data if where == "weights" else session.optimizer.state[weight]["exp_avg"]).view(-1)[0] = math.nan
    with pytest.raises(UserError, match="not finite|NaN or infinity"):
        session.save(2, exports)
    assert sorted(run.states.rglob("*")) == states
    assert run.lora_steps() == ([1, 2] if exports and where == "optimizer" else [1])  # a finite one, before the state
    assert_all_files_are_finite(run)


# ---- float16, on a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_cut_run_in_fp16_with_loss_scaling_ends_bitwise_where_an_uncut_one_does(tmp_path, base):
    half = merged(HARD, TEXT, {"loop": {"precision": "fp16"}})
    whole = new_run(tmp_path / "uncut", base, half)
    list(train(whole))
    run = new_run(tmp_path / "cut", base, half)
    for cut in (at(Stepped, 1), at(Saved, 2), at(Stepped, 5)):
        until(run, cut)
    list(train(run))
    assert_same_end(run, whole)
    state = checkpoint.newest(run.states).state
    assert state["scaler"]["scale"] > 0
    assert all(weight.dtype == torch.float32 for weight in state["adapter"].values())


@pytest.mark.gpu
def test_an_overflow_in_fp16_leaves_the_step_out_and_lowers_the_scale(tmp_path, base):
    run = new_run(tmp_path, base, EACH_STEP, {"loop": {"epochs": 3, "precision": "fp16"}}, sizes=SQUARES)
    spoiled = SpoiledSession(run, lambda losses, number: spoil_gradient(losses, number) if 3 <= number < 6 else losses)
    one, two = (loaded(run.states / name / "state.pt") for name in ("00000001", "00000002"))
    assert_same_bits([two["adapter"], two["optimizer"]["state"]], [one["adapter"], one["optimizer"]["state"]])
    assert two["scaler"]["scale"] == one["scaler"]["scale"] / 2
    assert spoiled.steps()[1].grad_norm is None and isinstance(spoiled.events[-1], Finished)


@pytest.mark.gpu
def test_a_bad_micro_batch_in_fp16_leaves_the_scale_as_it_was(tmp_path, base):
    run = new_run(tmp_path, base, EACH_STEP, {"loop": {"epochs": 3, "precision": "fp16"}}, sizes=SQUARES)
    spoiled = SpoiledSession(run, lambda losses, number: losses * (math.nan if number == 4 else 1.0))
    one, two, three = (loaded(run.states / f"0000000{step}" / "state.pt") for step in (1, 2, 3))
    assert two["scaler"] == {**one["scaler"], "_growth_tracker": 2} and three["scaler"]["_growth_tracker"] == 3
    assert [step.skipped for step in spoiled.steps()] == [0, len(spoiled.losses[4]), 0]
    assert any(not torch.equal(weight, one["adapter"][name]) for name, weight in two["adapter"].items())
    assert_all_files_are_finite(run)
