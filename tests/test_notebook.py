"""The notebook runs from its first cell to its last."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY


@pytest.fixture
def notebook():
    return nbformat.read(REPOSITORY / 'demo' / 'getting_started.ipynb', as_version=4)


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
    """With few images and a narrow backbone in the cell of parameters, and no other change."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')]))
    (parameters,) = (cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', []))
    names = parameters.source.splitlines()[-1].split(' = ')[0]
    parameters.source = f'{names} = 16, 4, 1, 16'
    NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(tmp_path)}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == 'code'
        for output in cell.outputs
        if 'image/png' in output.get('data', {})
    ]
    assert len(pictures) == 4
    assert (tmp_path / 'work_dirs' / 'notebook' / 'epoch_1.pth').is_file()


def test_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == 'code')
