"""The documentation builds, and what it says to type can be typed."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmgrc.stack import REQUIREMENTS
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / 'README.md', REPOSITORY / 'CONTRIBUTING.md', *sorted((REPOSITORY / 'docs').glob('*.md'))]


def blocks(page, language):
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.S)


def commands(page):
    lines = [line.split('  #')[0].strip() for block in blocks(page, 'shell') for line in block.splitlines()]
    return [line for line in lines if line]


def tool_source(name):
    """The text in which a tool's options stand."""
    text = (REPOSITORY / 'tools' / f'{name}.py').read_text()
    if name in ('train', 'test'):
        text += (Path(mmdet.__file__).parent / '.mim' / 'tools' / f'{name}.py').read_text()
    return text


def test_builds_without_a_warning(tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')],
        cwd=REPOSITORY,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert 'WARNING' not in result.stderr
    api = (tmp_path / 'site' / 'api' / 'index.html').read_text()
    for name in ('GRCPyramidVisionTransformer', 'GRCMonitorHook', 'cache_ratio', 'convert_checkpoint', 'view_memory'):
        assert name in api
    assert not re.search(r':(class|meth|func|mod|data):|&lt;https', api), 'a role of Sphinx is left'
    # A page that is read fetches nothing.
    for page in (tmp_path / 'site').rglob('*.html'):
        assert not re.search(r'<(script|img|link)[^>]*(src|href)="https?://', page.read_text()), page


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    """Each tool that is named is there, has the options that are named, and finds the config that is named."""
    makefile = (REPOSITORY / 'Makefile').read_text()
    for command in commands(page):
        words = shlex.split(command, comments=True)
        variables = list(itertools.takewhile(lambda word: '=' in word, words))
        words = words[len(variables) :]
        if words[0] == 'make':
            assert re.search(rf'^{words[1]}:', makefile, re.M), command
        elif words[0] == 'python' and words[1] != '-m':
            assert words[1].startswith('tools/'), command
            source = tool_source(words[1].removeprefix('tools/').removesuffix('.py'))
            for word in words[2:]:
                assert not word.startswith('--') or f"'{word}'" in source, command
                assert not word.startswith('configs/') or (REPOSITORY / word).is_file(), command
        elif words[0].endswith('.sh'):
            dry = ['env', *variables, *words, '--dry-run']
            result = subprocess.run(dry, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
            assert result.returncode == 0, result.stderr
        else:
            assert words[0] in ('python', '.', 'export', 'pip', 'bash'), command


def test_own_data_as_the_page_says(tmp_path, shapes):
    """The page's config, written to a file; data, the short training and inference by the page's commands."""
    page = REPOSITORY / 'docs' / 'own_data.md'
    (config,) = blocks(page, 'python')
    (tmp_path / 'mine.py').write_text(config)
    (tmp_path / 'tools').symlink_to(REPOSITORY / 'tools')
    typed = commands(page)
    short = next(command for command in typed if 'embed_dims=16' in command)
    infer = next(command for command in typed if 'tools/infer.py' in command).replace('epoch_5', 'epoch_1')
    for command in (typed[0], short, infer):
        words = shlex.split(command)
        assert words[0] == 'python'
        # The dumped config knows the narrow backbone.
        words = ['work_dirs/mine/mine.py' if word == 'mine.py' and command == infer else word for word in words]
        result = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-2000:]
    assert len(list((tmp_path / 'work_dirs' / 'mine' / 'detections' / 'drawings').iterdir())) == 8
    assert 'coco/segm_mAP' in next((tmp_path / 'work_dirs' / 'mine').glob('*/*.log')).read_text()


def test_other_detector(tmp_path):
    (config,) = blocks(REPOSITORY / 'docs' / 'other_detectors.md', 'python')
    (tmp_path / 'other.py').write_text(config)
    config = Config.fromfile(tmp_path / 'other.py')
    config.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    assert type(model).__name__ == 'RetinaNet'
    assert {name.split('.')[1] for name in model.backbone.grc_layers()} == {'2', '3'}


def test_each_row_of_the_contract_names_a_test_that_exists():
    table = (REPOSITORY / 'README.md').read_text().split('[start:contract] -->')[1].split('<!--')[0]
    rows = [line.split('|')[1:-1] for line in table.strip().splitlines()[2:]]
    assert len(rows) > 15
    for when, _, tests in rows:
        named = re.findall(r'`(\S+\.py)::(\w+)`', tests)
        assert named, when
        for path, name in named:
            source = (REPOSITORY / 'tests' / path).read_text()
            assert re.search(rf'^(def {name}\(|{name} = )', source, re.M), f'{path}::{name}'


def test_table_of_versions():
    text = (REPOSITORY / 'docs' / 'versions.md').read_text()
    for need in REQUIREMENTS:
        assert f'| {need.package} | {need.tested} | {need.allowed} |' in text


def test_pictures_are_there():
    for page in PAGES:
        for picture in re.findall(r'!\[[^\]]+\]\(([^)]+)\)', page.read_text()):
            assert (page.parent / picture).is_file(), picture
