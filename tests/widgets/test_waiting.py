"""A cell that shows a run ends when another cell is run, and training continues."""

from __future__ import annotations

import queue
import time

import pytest
from sessions import new_run

from lorakit.project import lock
from lorakit.training import jobs

manager = pytest.importorskip("jupyter_client.manager")
WATCH = (
    "from lorakit.project import Project\nfrom widgets.training.live import watch\nwatch(Project({folder!r}).run('r'))"
)


@pytest.fixture
def client():
    """A client of a real kernel."""
    kernel, client = manager.start_new_kernel()
    yield client
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


@pytest.fixture
def run(tmp_path):
    """A run that looks as if it were trained for as long as the test lasts."""
    run = new_run(tmp_path / "project", tmp_path / "no base is needed")
    with lock.lock_run(run):
        yield run


def ended(client, request: str, seconds: float) -> bool:
    """Whether a request is answered within so many seconds."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            if client.get_shell_msg(timeout=left)["parent_header"]["msg_id"] == request:
                return True
        except queue.Empty:
            return False
    return False


def test_a_cell_that_is_run_meanwhile_closes_the_view_and_is_answered(client, run):
    watching = client.execute(WATCH.format(folder=str(run.project.folder)))
    assert not ended(client, watching, 4)
    other = client.execute("1 + 1")
    assert ended(client, watching, 10)
    assert ended(client, other, 10)
    assert jobs.is_alive(run)


def test_cells_that_were_sent_all_at_once_wait_for_the_training(client, run):
    client.execute("import time; time.sleep(1)")  # while this runs the others arrive
    watching = client.execute(WATCH.format(folder=str(run.project.folder)))
    client.execute("1 + 1")
    assert not ended(client, watching, 6)
