"""`make gpu` is resumed part by part: a GPU may be there for a few minutes only."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def gpu():
    file = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("benchmark_gpu", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_part_that_passed_is_not_run_again_and_one_that_failed_or_found_no_time_is(gpu, tmp_path, capsys):
    def part(name: str, code: str, seconds: int = 5):
        command = ("-c", f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r}); {code}")
        return gpu.Part(name, seconds, command, command)

    def call(where: str, budget: float = 60.0) -> tuple[int, str]:
        (tmp_path / "ran").write_text("")
        status = gpu.run(chosen, tmp_path / "results", where, budget, dry=False, again=False)
        return status, (tmp_path / "ran").read_text()

    chosen = [part("a", "print('fast')"), part("b", "raise SystemExit(2)"), part("c", "print('slow')", 100)]
    assert call("an L4") == (1, "ab") and "Left for the next call: c." in capsys.readouterr().out
    chosen[1] = part("b", "print('fixed')")
    assert call("an L4") == (3, "b")
    assert call("an L4", budget=200.0) == (0, "c")
    assert call("an L4") == (0, "")
    assert call("a T4") == (3, "ab")  # results of another GPU do not count
    page = (tmp_path / "results" / "report.md").read_text()
    assert "| a | passed |" in page and "a T4" in page and "slow" in page
    assert [item["status"] for item in json.loads((tmp_path / "results" / "results.json").read_text())] == [0, 0, 0]


def test_a_part_that_hangs_is_ended_and_said_to_have_run_too_long(gpu):
    part = gpu.Part("a", 1, ("-c", "import time; print('begun', flush=True); time.sleep(60)"), ())
    result = gpu.run_part(part, "an L4", 0.5, dry=False)
    assert gpu.verdict(result) == "ran too long"


def test_every_part_is_a_script_that_is_there_with_options_that_it_has(gpu):
    root = Path(__file__).parents[1]
    for part in gpu.parts():
        for command in (part.command, part.dry):
            assert command[0] == "-m" or (root / command[0]).is_file()
            source = (root / command[0]).read_text() if command[0] != "-m" else ""
            assert all(f'"{option}"' in source for option in command[1:] if source and option.startswith("--"))
