"""An error for people is one sentence below the cell; any other error keeps its traceback."""

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient")
FIRST = "from widgets.plain import plain_errors\nplain_errors()\nfrom lorakit.errors import UserError"


def outputs_of(*cells: str) -> list[list]:
    """What stands below each cell, run in a real kernel with a traceback allowed."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=60, allow_errors=True).execute()
    return [cell.outputs for cell in notebook.cells]


def test_only_errors_for_people_are_shown_as_what_they_say():
    _, [shown], [other], [after] = outputs_of(
        FIRST,
        "raise UserError('no folder <x>')",
        "raise ValueError('a fault of ours')",
        "print('continues')",
    )
    assert shown.output_type == "display_data" and "no folder &lt;x&gt;" in shown.data["text/html"]
    assert "Traceback" not in shown.data["text/html"]
    assert other.output_type == "error" and other.ename == "ValueError"
    assert after.text == "continues\n"


def test_a_cell_that_is_run_before_those_above_it_says_so_and_a_fault_of_ours_keeps_its_traceback():
    _, [early], [deep] = outputs_of(FIRST, "run = form.run()", "def ours():\n    return missing\n\nours()")
    assert "“form” is not defined yet" in early.data["text/html"]
    assert deep.output_type == "error" and deep.ename == "NameError"


def test_settings_are_called_by_their_labels():
    labels = FIRST.replace("plain_errors()", "from widgets.project.labels import labelled\nplain_errors(labelled)")
    _, [shown] = outputs_of(labels, "raise UserError('adapter.rank is 0; see config.yaml')")
    assert "“Rank” is 0; see config.yaml" in shown.data["text/html"]


def test_the_interrupt_button_is_no_error():
    _, [stopped], [after] = outputs_of(FIRST, "raise KeyboardInterrupt", "print('continues')")
    assert "Work done so far is kept" in stopped.data["text/html"] and after.text == "continues\n"


def test_a_cell_that_showed_such_an_error_has_failed():
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(FIRST), nbformat.v4.new_code_cell("raise UserError('no')")]
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="no"):
        nbclient.NotebookClient(notebook, timeout=60).execute()


def test_an_error_of_a_click_or_a_field_is_shown_below_its_form():
    kit = "import lorakit.project, ipywidgets\nfrom widgets.plain import show\n"
    kit += "text, button = ipywidgets.Text(), ipywidgets.Button()\nshow(ipywidgets.VBox([text, button]))\n"
    kit += "def full(*_):\n    raise OSError(28, 'No space left on device', '/p/settings.yaml')\n"
    kit += "def fault(*_):\n    raise KeyError('a fault')\n"
    kit += "text.observe(full, 'value'); button.on_click(fault)"
    look = "from widgets import plain\nprint([line.value for line in plain._LINES.values()])"
    field = "text._handle_msg({'content': {'data': {'method': 'update', 'state': {'value': 'x'}}}})"
    *_, [after_field], _, [after_click] = outputs_of(FIRST, kit, field, look, "button.click()", look)
    assert "/p/settings.yaml cannot be written: the disk is full" in after_field.text
    assert "Fault of lorakit" in after_click.text and "lorakit-error-" in after_click.text


def test_a_full_disk_in_a_cell_is_a_sentence_and_a_fault_of_the_kit_a_report():
    full = "import lorakit.files\nfrom pathlib import Path\nlorakit.files.write_atomic(Path('/dev/null/x'), 'x')"
    fault = "from lorakit.data.captions import tags_of\ntags_of(5)"
    _, [shown], [report] = outputs_of(FIRST, full, fault)
    assert "/dev/null/x cannot be used" in shown.data["text/html"]
    assert "Fault of lorakit" in report.data["text/html"]
