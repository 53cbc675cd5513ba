"""What a base predicts is seen in its own output: a contradiction stops the run, and nothing else does."""

from __future__ import annotations

import pytest
import tiny

from lorakit.config import ConfigError
from lorakit.demo import DATASET
from lorakit.events import Started, Stepped, Warned
from lorakit.models import sd15
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.training.loop import Session, train


def as_v(model, xt, t, text):
    """The demo base's prediction of the noise as the v that a twin of it would predict (Salimans & Ho 2022)."""
    abar = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    return (model.noise(xt, t, text) - (1 - abar).sqrt() * xt) / abar.sqrt()


@pytest.fixture
def v_twin(monkeypatch):
    monkeypatch.setattr(sd15.Model, "noise", sd15.Model.predict, raising=False)
    monkeypatch.setattr(sd15.Model, "predict", as_v)


def run_of(folder, source="demo", **model):
    """A run of one step on three images."""
    run = Project(folder).run("r")
    data = {"resolution": 128, "min_bucket_reso": 128, "max_bucket_reso": 128}
    settings = {
        "data": {**data, "folder": str(folder / "dataset")},
        "adapter": {"rank": 2, "alpha": 2},
        "loop": {"steps": 1},
    }
    (folder / "dataset").mkdir(parents=True)
    for image in sorted(DATASET.rglob("*.png"))[:3]:
        for file in (image, image.with_suffix(".txt")):
            (folder / "dataset" / file.name).write_bytes(file.read_bytes())
    save_config(run, configure({**settings, "model": {"family": "sd15", "source": source, **model}}))
    return run


def test_an_epsilon_base_is_shown_and_refused_as_v(tmp_path):
    events = list(train(run_of(tmp_path / "a")))
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.prediction == "epsilon" and not any(isinstance(event, Warned) for event in events)
    run = run_of(tmp_path / "b", prediction_type="v_prediction")
    with pytest.raises(
        ConfigError, match="demo predicts noise .* as model.prediction_type is v_prediction.* Set model."
    ):
        list(train(run))
    assert not run.record_file.exists()


def test_a_v_base_without_a_mark_is_refused_as_epsilon_and_trained_as_v(tmp_path, v_twin):
    with pytest.raises(
        ConfigError, match="demo predicts velocity.* as its files say.* model.prediction_type=v_prediction"
    ):
        list(train(run_of(tmp_path / "a")))
    events = list(train(run_of(tmp_path / "b", prediction_type="v_prediction")))
    assert events[-1].step == 1 and any(isinstance(event, Stepped) for event in events)


def test_random_weights_show_neither_and_a_name_that_says_v_warns(tmp_path):
    for seed, name in enumerate(("plain", "noob-vPred")):
        base = tiny.save_sd15(tmp_path / name, seed=seed)
        session = Session(run_of(tmp_path / f"{name} project", source=str(base)))
        warned = [event.text for event in session.prepare() if isinstance(event, Warned)]
        assert [("says v prediction" in text) for text in warned] == [True] * (name == "noob-vPred")


def test_measuring_changes_no_bit_of_the_training(tmp_path, monkeypatch):
    ends = []
    for name in ("measured", "not"):
        run = run_of(tmp_path / name)
        session = Session(run)
        list(session.prepare())
        session.step(1)
        ends.append(session.adapter.weights())
        monkeypatch.setattr("lorakit.training.loop.check_prediction", lambda *_: ())
    assert all(ends[0][key].equal(ends[1][key]) for key in ends[0])
