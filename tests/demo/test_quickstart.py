"""The quick start runs a notebook in any folder, without a TCP port, and leaves what it ran."""

import nbformat

from lorakit.demo import quickstart


def test_the_notebook_is_run_to_its_end_on_unix_sockets_and_left_with_its_outputs(tmp_path, monkeypatch, capfd):
    code = "from ipykernel.kernelapp import IPKernelApp; print(IPKernelApp.instance().transport)"
    source = tmp_path / "source.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), source)
    monkeypatch.setattr(quickstart, "NOTEBOOK", source)
    quickstart.execute(tmp_path / "output")
    (cell,) = nbformat.read(tmp_path / "output" / "source.ipynb", as_version=4).cells
    assert cell.outputs[0].text == "ipc\n"
    printed = capfd.readouterr()
    assert "cell 1 of 1 done" in printed.out and "WARNING" not in printed.err
