"""What the tests of the checks share: a data set to break, its config, and the warnings."""

import json
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from mmgrc.runs.config import config_path


@pytest.fixture
def data(shapes, tmp_path):
    """A copy of the data set, to break."""
    return Path(shutil.copytree(shapes, tmp_path / 'data' / 'shapes'))


@pytest.fixture
def config(data, monkeypatch):
    monkeypatch.setenv('SHAPES_ROOT', str(data))
    config = Config.fromfile(config_path('mmgrc::shapes/mask_rcnn_grc_pvt.py'))
    config.merge_from_dict(
        {
            'model.backbone.embed_dims': 16,
            'model.backbone.num_layers': [1, 1, 1, 1],
            'model.neck.in_channels': [16, 32, 80, 128],
        }
    )
    return config


@pytest.fixture
def edit(data):
    """Change the content of an annotation file."""

    def change_file(change, split='train'):
        file = data / 'annotations' / f'instances_{split}.json'
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return content

    return change_file


@pytest.fixture
def said(monkeypatch):
    """The warnings."""
    messages = []
    for module in (
        'config',
        'preflight.datasets',
        'preflight.evaluators',
        'preflight.models',
        'preflight.optimizers',
        'preflight.schedule',
    ):
        monkeypatch.setattr(f'mmgrc.runs.{module}.print_log', lambda message, **_: messages.append(message))
    return messages
