"""The log remembers a run: events come back, a killed process leaves it readable, the view is rebuilt from it."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from lorakit.events import (
    EVENT_TYPES,
    Event,
    Finished,
    Sampled,
    Saved,
    Started,
    Stepped,
    Stopped,
    Tail,
    Warned,
    append,
    read,
    steps,
)
from lorakit.project import Project
from lorakit.training.status import project_status, run_status

SAMPLE = {
    int: 3,
    float: 0.1 + 0.2,
    str: '帽子 “x”\u2028\\ "\n\r\x85\x00 end',
    float | None: None,
}


def sample_of(kind: type[Event]) -> Event:
    hints = typing.get_type_hints(kind)
    return kind(**{f.name: SAMPLE[hints[f.name]] for f in dataclasses.fields(kind)})


def stepped(step: int, loss: float | None = 0.5) -> Stepped:
    return Stepped(
        step=step, epoch=1, loss=loss, lr=1e-4, grad_norm=1.0, skipped=0, images_per_second=2.0, memory_gb=1.5
    )


def started(step: int) -> Started:
    return Started(step=step, steps=9, steps_per_epoch=3, images=4, precision="fp32", device="cpu")


def saved(step: int) -> Saved:
    return Saved(step=step, state=f"states/{step:08d}", lora=f"lora/r-{step:06d}.safetensors", matched="8/8")


@pytest.mark.parametrize("kind", Event.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_event_survives_the_log(kind, tmp_path):
    event = sample_of(kind)
    append(tmp_path / "log", event, time=1234.5678)
    append(tmp_path / "log", event, time=1235)
    assert list(read(tmp_path / "log")) == [(1234.568, event), (1235, event)]
    assert EVENT_TYPES[kind.__name__.lower()] is kind
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.time = 1


def test_the_log_is_one_json_table_a_line_that_other_tools_can_read(tmp_path):
    for kind in Event.__subclasses__():
        append(tmp_path / "log", sample_of(kind), time=1)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["kind"] for line in lines] == list(EVENT_TYPES)


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert list(read(tmp_path / "log")) == [] and steps(tmp_path / "log") == {}


def test_a_log_torn_at_any_byte_keeps_its_whole_lines_and_takes_new_ones(tmp_path):
    log, events = tmp_path / "log", [started(0), stepped(1), Warned(text="é帽\n")]
    for event in events:
        append(log, event, time=1)
    whole = log.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole)):
        log.write_bytes(whole[:cut])
        append(log, stepped(7), time=2)
        kept = sum(end <= cut for end in ends)  # a line that lacks only its newline is whole
        assert list(read(log)) == [(1, event) for event in events[:kept]] + [(2, stepped(7))], cut


def test_a_line_of_zeros_from_a_power_cut_is_skipped(tmp_path):
    log = tmp_path / "log"
    append(log, stepped(1), time=1)
    with open(log, "ab") as file:
        file.write(bytes(512))
    append(log, stepped(2), time=2)
    assert list(steps(log)) == [1, 2]


def test_a_growing_log_is_read_piece_by_piece_each_event_once(tmp_path):
    log, events = tmp_path / "log", [started(0), stepped(1), Warned(text="é帽\n"), stepped(2)]
    for event in events:
        append(log, event, time=1)
    whole, tail, seen = log.read_bytes(), Tail(log), []
    log.unlink()
    assert tail.new() == []
    for end in range(len(whole) + 1):
        log.write_bytes(whole[:end])
        seen += tail.new()
        assert len(seen) == whole[: end + 1].count(b"\n")  # a line that lacks only its newline is whole
    assert [event for _, event in seen] == events
    assert tail.new() == []


def test_a_log_is_followed_past_an_incomplete_line(tmp_path):
    log = tmp_path / "log"
    append(log, stepped(1), time=1)
    tail = Tail(log)
    with open(log, "ab") as file:
        file.write(b'{"kind": "stepp')
    assert tail.new() == [(1, stepped(1))]
    append(log, stepped(2), time=2)
    assert tail.new() == [(2, stepped(2))]


def test_what_was_read_of_a_log_is_not_read_again(tmp_path, monkeypatch):
    log, lines, loads = tmp_path / "log", [], json.loads
    for step in range(500):
        append(log, stepped(step), time=1)
    tail = Tail(log)
    tail.new()
    monkeypatch.setattr(json, "loads", lambda line: lines.append(line) or loads(line))
    assert tail.new() == [] and lines == []
    append(log, stepped(500), time=1)
    assert tail.new() == [(1, stepped(500))]
    assert len(lines) == 1


NO_EVENTS = {
    "a newer kit's event": b'{"kind": "dreamt", "time": 1}',
    "a list": b"[]",
    "a number": b"5",
    "a field of another type": b'{"kind": "stopped", "time": 1, "step": "x", "reason": ""}',
    "a field missing": b'{"kind": "stopped", "time": 1, "step": 3}',
    "a time that no calendar has": b'{"kind": "stopped", "time": 1e300, "step": 3, "reason": ""}',
    "brackets": b"[" * 100_000,
    "binary": bytes(range(256)).replace(b"\n", b""),
    "nothing": b"",
}


@pytest.mark.parametrize("line", NO_EVENTS.values(), ids=NO_EVENTS)
def test_a_line_that_is_no_event_is_skipped_and_shown_once_if_it_is_json(tmp_path, line):
    log = tmp_path / "log"
    append(log, stepped(1), time=1)
    log.write_bytes(log.read_bytes() + line + b"\n" + line + b"\n")
    append(log, stepped(2), time=2)
    tail = Tail(log)
    assert tail.new() == [(1, stepped(1)), (2, stepped(2))]
    is_json = line[:1] in b"{[5" and len(line) < 1000 and line != b""
    assert bool(tail.skipped) == is_json and (not is_json or str(log) in tail.skipped)


def test_a_field_that_a_newer_version_added_is_left_out(tmp_path):
    log = tmp_path / "log"
    append(log, stepped(1), time=1)
    log.write_bytes(log.read_bytes().replace(b"}", b', "humidity": 0.4}'))
    assert list(read(log)) == [(1, stepped(1))]


def test_no_secret_of_an_address_reaches_the_log(tmp_path):
    log = tmp_path / "log"
    append(log, Warned(text="got https://me:pa55@host/x?token=abc&id=3 late"), time=1)
    assert list(read(log)) == [(1, Warned(text="got https://***@host/x?token=***&id=3 late"))]


@pytest.mark.parametrize("ahead", [0, 5], ids=["a shorter one", "a longer one"])
def test_a_log_that_replaces_another_is_read_from_its_start(tmp_path, ahead):
    log, other = tmp_path / "log", tmp_path / "other"
    for step in range(1, 4):
        append(log, stepped(step), time=1)
    tail = Tail(log)
    tail.new()
    for step in range(2 + ahead):
        append(other, stepped(step), time=7)
    other.replace(log)
    assert tail.new() == list(read(log)) != []
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:1]))  # an older copy of it
    assert tail.new() == [(7, stepped(0))]


def test_steps_that_were_done_again_after_a_resume_replace_the_first_ones(tmp_path):
    log = tmp_path / "log"
    for event in (started(0), *map(stepped, (1, 2, 3, 4)), started(2), stepped(3, 0.3), stepped(4, None), stepped(5)):
        append(log, event, time=1)
    found = steps(log)
    assert list(found) == [1, 2, 3, 4, 5] and [found[i].loss for i in found] == [0.5, 0.5, 0.3, None, 0.5]


# ---- the state of a run, from its log alone ----------------------------------------------------------------------


def logged(run, *events):
    run.folder.mkdir(parents=True, exist_ok=True)
    for event in events:
        append(run.log, event, time=1)
    return run_status(run)


def test_the_status_follows_the_log_from_new_to_finished(tmp_path):
    run = Project(tmp_path).run("r")
    seen = [run_status(run)]
    for event in (
        started(0),
        stepped(1, 0.5),
        saved(1),
        stepped(2, None),
        stepped(3, 1.5),
        Sampled(step=3, prompt="mofu", image="samples/a.png"),
        Stopped(step=1, reason="stop was asked for"),
        started(1),
        stepped(2, 0.5),
        Finished(step=2, lora="lora/r-000002.safetensors"),
    ):
        seen.append(logged(run, event))
    assert [s.state for s in seen] == ["new"] + ["cut"] * 6 + ["stopped"] + ["cut"] * 2 + ["finished"]
    assert [s.step for s in seen] == [0, 0, 1, 1, 2, 3, 3, 3, 1, 2, 2]
    assert [s.saved_step for s in seen] == [0, 0, 0] + [1] * 8
    assert seen[0].steps == 0 and seen[1].steps == 9
    assert [s.newest_sample for s in seen] == [""] * 6 + ["samples/a.png"] * 5
    assert seen[1].loss is None and seen[2].loss == seen[4].loss == 0.5 and seen[5].loss == pytest.approx(0.55)


def test_the_smoothed_loss_of_a_resumed_run_is_that_of_an_uncut_one(tmp_path):
    losses = {step: 1 / step for step in range(1, 8)}
    project = Project(tmp_path)
    uncut = logged(project.run("uncut"), started(0), *(stepped(s, losses[s]) for s in losses))
    first = [stepped(s, losses[s]) for s in range(1, 6)]
    again = [stepped(s, losses[s]) for s in range(3, 8)]
    cut = logged(project.run("cut"), started(0), *first, started(2), *again)
    assert cut.loss == uncut.loss and cut.step == uncut.step == 7


def test_a_project_tells_its_runs_by_name_with_the_files_that_are_there(tmp_path):
    project = Project(tmp_path)
    assert project_status(project) == []
    for name in ("b", "a"):
        run = project.run(name)
        logged(run, started(0), stepped(1))
        run.config_file.write_text("")
        run.loras.mkdir()
        run.lora_file(12).write_bytes(b"")
    (project.folder / "runs/a (copy)").mkdir()
    (project.folder / "runs/a (copy)/config.yaml").write_text("")
    found = project_status(project)
    assert [(s.name, s.loras) for s in found] == [
        ("a", ("lora/a-000012.safetensors",)),
        ("b", ("lora/b-000012.safetensors",)),
    ]
    assert json.loads(json.dumps([vars(s) for s in found]))[0]["step"] == 1
