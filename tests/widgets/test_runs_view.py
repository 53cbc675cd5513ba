"""The run list: every run as it is, and buttons that do what they say."""

import json
import os
import sys
from types import ModuleType, SimpleNamespace

import IPython
import pytest
from logs import Trainer, long_run, project, sampled, saved, started, stepped, write

from lorakit.events import Finished, Stopped
from lorakit.project import ProjectError
from lorakit.training import jobs
from widgets.evaluate.runs import RunList, row


@pytest.fixture
def runs(tmp_path):
    """A project with a run that is new, one that was stopped and one that is complete."""
    three_runs = project(tmp_path)
    write(three_runs.run("new"))
    run = three_runs.run("stopped")
    steps = [stepped(i) for i in (1, 2, 3)]
    write(
        run, started(0, 9), *steps, saved(run, 3, exports=True), *sampled(run, 3), Stopped(step=3, reason=""), ago=300
    )
    run = three_runs.run("complete")
    write(run, started(0, 3), *steps, saved(run, 3, exports=True), Finished(step=3, lora="lora/x.safetensors"))
    return three_runs


def visible_buttons(runs: RunList, name: str) -> set[str]:
    """The buttons of a run that can be seen."""
    return {what for what, button in runs.buttons[name].items() if button.layout.display != "none"}


def test_a_row_shows_state_steps_loss_sample_and_what_is_saved(runs):
    html = row(runs.run("stopped"))
    for text in ("stopped", "step 3 / 9", "loss 0.1", "saved here: step 3 (5 min ago)", "last activity 5 min ago"):
        assert text in html
    assert html.count("data:image/jpeg") == 1 and html.count("data:image/svg") == 1
    assert "not started" in row(runs.run("new")) and "finished" in row(runs.run("complete"))


def test_a_row_of_a_long_run_is_small(tmp_path):
    assert len(row(long_run(project(tmp_path).run("r"), 2_000))) < 15_000


def test_every_run_has_the_buttons_that_make_sense_for_it(runs):
    view = RunList(runs)
    assert (
        visible_buttons(view, "new") == {"view", "continue"} and view.buttons["new"]["continue"].description == "Start"
    )
    assert visible_buttons(view, "stopped") == {"view", "continue", "download"}
    assert visible_buttons(view, "complete") == {"view", "download"}
    with Trainer(runs.run("new")):
        view.refresh()
        assert visible_buttons(view, "new") == {"view", "stop"}


def test_view_shows_the_whole_run_below(runs):
    view = RunList(runs)
    view.buttons["stopped"]["view"].click()
    assert "Everything up to step 3 is saved" in view.detail.value and "Samples" in view.detail.value


def test_continue_starts_the_trainer_and_says_where_to_watch_it(runs, monkeypatch):
    begun = []
    monkeypatch.setattr(jobs, "start", lambda run: begun.append(run.name) or True)
    view = RunList(runs)
    view.buttons["stopped"]["continue"].click()
    assert begun == ["stopped"] and "in the background" in view.message.value
    assert "watch(project.run(&quot;stopped&quot;))" in view.message.value


def test_stop_stops_the_trainer_of_another_process(runs):
    run, view = runs.run("stopped"), RunList(runs)
    with Trainer(run, saving=0) as trainer:
        view.refresh()
        view.buttons["stopped"]["stop"].click()
        assert trainer.process.wait(10) == 0
    view.refresh()
    assert visible_buttons(view, "stopped") == {"view", "continue", "download"}


def test_an_error_after_a_click_is_shown_in_the_list(runs, monkeypatch):
    def refuse(run):
        raise ProjectError("its config is <gone>")

    monkeypatch.setattr(jobs, "start", refuse)
    view = RunList(runs)
    view.buttons["new"]["continue"].click()
    assert "its config is &lt;gone&gt;" in view.message.value


def test_a_file_that_jupyter_serves_is_a_link_and_any_other_a_path(runs, tmp_path, monkeypatch):
    config = {"IPKernelApp": {"connection_file": str(tmp_path / "runtime" / "kernel-1.json")}}
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(config=config))
    monkeypatch.setenv("JPY_PARENT_PID", "77")
    view = RunList(runs)
    view.buttons["stopped"]["download"].click()
    assert str(runs.run("stopped").lora_file(3)) in view.message.value and "href" not in view.message.value
    (tmp_path / "runtime").mkdir()
    server = {"root_dir": str(tmp_path), "base_url": "/jupyter/"}
    (tmp_path / "runtime" / "jpserver-77.json").write_text(json.dumps(server))
    view.buttons["stopped"]["download"].click()
    link = "/jupyter/files/project/runs/stopped/lora/stopped-000003.safetensors?download=1"
    assert f'href="{link}" download' in view.message.value


def test_colab_downloads_by_itself(runs, monkeypatch):
    taken, files = [], ModuleType("google.colab.files")
    files.download = taken.append
    for name, module in {"google": ModuleType("google"), "google.colab": ModuleType("google.colab")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "google.colab.files", files)
    view = RunList(runs)
    view.buttons["complete"]["download"].click()
    assert taken == [os.fspath(runs.run("complete").lora_file(3))] and "href" not in view.message.value


def test_a_new_run_appears_with_the_next_refresh_and_an_empty_project_says_so(tmp_path):
    empty = project(tmp_path)
    view = RunList(empty)
    assert "No runs" in view.message.value and view.list.children == ()
    write(empty.run("first"), started(0, 3))
    view.refresh()
    assert len(view.list.children) == 1 and view.message.value == ""
