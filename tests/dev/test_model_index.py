"""Metafiles, tables and configs agree."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from mmengine.config import Config

from dev.model_index import (
    count_backbone_flops,
    count_parameters,
    model_table,
    read_models,
    update_metafiles,
    write_tables,
)
from mmgrc.runs.config import CONFIG_DIR
from mmgrc.runs.error import InputError
from tests.conftest import REPOSITORY

MODELS = read_models(REPOSITORY)
# AAAI 2024, Tables 4 and 5: box AP, and mask AP.
PAPER = {
    'mask_rcnn_pvt': (36.7, 35.1),
    'mask_rcnn_grc_pvt': (41.0, 38.3),
    'mask_rcnn_pvt_small': (40.4, 36.3),
    'mask_rcnn_grc_pvt_small': (44.5, 41.0),
    'mask_rcnn_pvt_medium': (42.0, 39.0),
    'mask_rcnn_grc_pvt_medium': (46.6, 42.3),
    'retinanet_pvt': (36.7,),
    'retinanet_grc_pvt': (40.2,),
    'retinanet_pvt_small': (40.4,),
    'retinanet_grc_pvt_small': (44.0,),
    'retinanet_pvt_medium': (41.9,),
    'retinanet_grc_pvt_medium': (45.7,),
}


def test_each_coco_config_stands_there_once():
    listed = [model['Config'].removeprefix('configs/') for model in MODELS]
    configs = [str(p.relative_to(CONFIG_DIR)) for p in CONFIG_DIR.rglob('*.py')]
    assert sorted(listed) == sorted(
        name for name in configs if not name.startswith(('_base_/', 'shapes/', 'more/', 'pretrain/', 'small_data/'))
    )
    assert len({model['Name'] for model in MODELS}) == len(MODELS)


def test_entries_agree_with_each_other_and_the_paper():
    for model in MODELS:
        memory = 'GRC attention' in model['Metadata']['Architecture']
        assert memory == ('_grc_' in model['Config']) == (not model['Config'].startswith('configs/baselines/'))
        assert model['Config'].split('/')[-1].startswith(model['In Collection'].removesuffix('_grc'))
        # Nothing was trained on COCO: nothing is claimed.
        assert 'Results' not in model
        assert tuple(model['Metadata']['Paper'].values()) == PAPER.get(model['Name'], ())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mask_rcnn_grc_pvt', 'retinanet_grc_swin', 'retinanet_pvt'])
def test_counts_are_the_configs(name):
    (model,) = (model for model in MODELS if model['Name'] == name)
    config = Config.fromfile(REPOSITORY / model['Config'])
    assert model['Metadata']['Parameters'] == count_parameters(config)
    assert model['Metadata']['Epochs'] == config.train_cfg.max_epochs
    assert model['Metadata']['Backbone FLOPs'] == count_backbone_flops(config)
    stages = config.model.backbone.get('grc', {}).get('stages', (0, 1, 2, 3))
    assert ('GRC attention' in model['Metadata']['Architecture']) == bool(stages)


def test_tables_are_up_to_date():
    pages = [REPOSITORY / 'README.md', *(REPOSITORY / 'docs').glob('*.md')]
    texts = {page: page.read_text() for page in pages}
    try:
        assert write_tables(pages, MODELS) == [], 'type: make tables'
    finally:
        for page, text in texts.items():
            page.write_text(text)
    table = texts[REPOSITORY / 'docs' / 'models.md']
    assert len(re.findall(r'^\| `configs/.*\| not trained here \|$', table, re.M)) == len(MODELS)


def test_own_results_stand_in_their_column():
    model = {
        'Config': 'a.py',
        'Metadata': {'Parameters': 1_250_000, 'Backbone FLOPs': 2_000_000_000, 'Paper': {'box AP': 41.0}},
        'Results': [{'Task': 'Object Detection', 'Dataset': 'COCO', 'Metrics': {'box AP': 40.5}}],
    }
    assert model_table([model]).splitlines() == [
        "| config | parameters | backbone, GFLOP | box AP, paper's | trained here |",
        '| --- | ---: | ---: | ---: | --- |',
        '| `a.py` | 1.2 M | 2 | 41.0 | box AP 40.5 |',
    ]


@pytest.fixture
def copy(tmp_path):
    """A repository with one model and an outdated metafile."""
    shutil.copytree(REPOSITORY / 'configs', tmp_path / 'configs')
    (tmp_path / 'model-index.yml').write_text('Import: [configs/one.yml]')
    (entry,) = (dict(model) for model in MODELS if model['Name'] == 'mask_rcnn_grc_pvt')
    entry['Metadata'] = {'Epochs': 1, 'Parameters': 1, 'Backbone FLOPs': 1, 'Paper': {'box AP': 41.0}}
    (tmp_path / 'configs' / 'one.yml').write_text('# kept\n' + yaml.safe_dump({'Models': [entry]}))
    (tmp_path / 'README.md').write_text(
        'a\n<!-- models of mask_rcnn_grc, by `make tables` -->\nold\n<!-- end of models -->\nb\n'
    )
    return tmp_path


def make_tables(*args):
    """The command of `make tables`."""
    command = [sys.executable, '-m', 'dev.make_tables', *map(str, args)]
    return subprocess.run(command, cwd=REPOSITORY, timeout=300, capture_output=True, text=True)


def test_the_command_brings_all_up_to_date(copy):
    result = make_tables('--root', copy)
    assert 'README.md is written' in result.stdout, result.stderr
    text = (copy / 'configs' / 'one.yml').read_text()
    assert text.startswith('# kept\n')
    assert yaml.safe_load(text)['Models'][0]['Metadata']['Epochs'] == 12
    readme = (copy / 'README.md').read_text()
    assert readme.startswith('a\n<!--')
    assert 'old' not in readme
    assert '| 41.0 | not trained here |\n<!-- end of models -->\nb\n' in readme
    assert update_metafiles(copy) == []


def test_bad_input(copy, tmp_path):
    with pytest.raises(InputError, match=r'there is no .*model-index\.yml'):
        read_models(tmp_path / 'nothing')
    (copy / 'README.md').write_text('<!-- models of yolo, by `make tables` -->\n<!-- end of models -->\n')
    result = make_tables('--root', copy, '--tables-only')
    assert result.returncode == 1
    assert 'there are no models of yolo; there are mask_rcnn_grc' in result.stderr
