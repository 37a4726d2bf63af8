"""Run every command of README, CONTRIBUTING and docs in a clone, from a page's first line to its last."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.models.backbones import PyramidVisionTransformer

from mmgrc.datasets import write_shapes
from tests.conftest import REPOSITORY
from tests.helpers.foreign_formats import make_scenes, write_yolo
from tests.helpers.forked_python import forked_python
from tests.helpers.published import original_pvt

ACTIVATE = '. .venv/bin/activate'
BLOCK = re.compile(r'```(\w+)\n(.*?)```', re.S)
PAGES = [REPOSITORY / 'README.md', REPOSITORY / 'CONTRIBUTING.md', *sorted((REPOSITORY / 'docs').glob('*.md'))]
PAGES = [page for page in PAGES if BLOCK.search(page.read_text())]

# What a reader fills in.
PLACEHOLDERS = {
    '/path/to/coco': 'elsewhere/coco',
    '/path/to/dataset': 'elsewhere/yolo',
    # The work dir has a copy of the config, with the options of the training.
    'CONFIG': 'work_dirs/mask_rcnn_grc_pvt/mask_rcnn_grc_pvt.py',
    'CHECKPOINT': 'work_dirs/mask_rcnn_grc_pvt/epoch_1.pth',
    # The trial of the COCO configs has one epoch, that of small data two steps.
    'epoch_12': 'epoch_1',
    'iter_400': 'iter_2',
    "IMAGE|DIR|'GLOB'": "'data/shapes/val/00000[12].png'",
    'IMAGE': 'data/shapes/val/000001.png',
    'SRC': 'pvt_tiny.pth',
    'DST': 'converted.pth',
    'PARTITION': 'debug',
    'JOB_NAME': 'mmgrc',
    'WORK_DIR': 'work_dirs/job',
}
VARIABLES = r'(\w+=\S+ )*'
# Commands that take long, and where their page, or a page that it links to, has the options to try them with.
_TO_TRY = r'(?:(?!\n\n).)+\n\n```shell\n[^`\n]+ (--cfg-options [^`\n]+)\n```'
TRIALS = {
    # The config that a conversion writes is one for COCO.
    r'python tools/train\.py data/photos/': rf'To try everything {_TO_TRY}',
    r'make demo': r'`make demo (OPTIONS=[^`]+)`',
    rf'{VARIABLES}python tools/(train|test)\.py ': rf'To try {_TO_TRY}',
    r'python tools/benchmark\.py ': r'`(--size \d+ \d+ --runs \d+)`',
}
# Added to the clone's configs: commands are tried here. `test_configs.py` trains each config with its own backbone.
NARROW = """
model['backbone'].update(embed_dims=8, num_layers=[1, 1, 1, 1])
model['neck']['in_channels'] = [8, 16, 40, 64]
"""
TRIAL_PAGES = {
    'README.md': ['docs/coco.md', 'docs/index.md'],
    'other_detectors.md': ['docs/coco.md'],
    'own_data.md': ['docs/coco.md'],
}


class Instead(NamedTuple):
    """What is run instead of a command."""

    option: str | None
    """Added to the command. None: nothing is run."""
    why: str
    test: str
    """The test that runs it, below `tests/`."""


NOT_EXECUTED = {
    r'make env(-pretrain)?$': Instead(
        '--dry-run', 'fetches packages', 'test_repository.py::test_the_workflow_is_ci_run'
    ),
    r'make (test|test-fast|test-gpu)$': Instead(
        '--dry-run', 'runs tests', 'test_repository.py::test_the_workflow_is_ci_run'
    ),
    r'make test-stack ': Instead(
        '--dry-run', 'fetches packages', 'env/test_versions.py::test_a_stack_replaces_lines_of_the_requirements'
    ),
    rf'{VARIABLES}python tools/pretrain(_test)?\.py |python tools/convert_checkpoint\.py work_dirs/grc_pvt/': Instead(
        None, 'needs mmpretrain', 'tools/test_pretrain.py::test_logs_evaluates_and_reports'
    ),
    r'python tools/train\.py .*init_cfg\.checkpoint=backbone\.pth': Instead(
        None, 'needs a classifier', 'tools/test_pretrain.py::test_detector_starts_from_the_classifier'
    ),
    r'python (tools/export_onnx|detect)\.py ': Instead(
        None, 'takes a minute', 'export/test_onnx.py::test_the_script_of_the_page'
    ),
    r'make lint$': Instead('--dry-run', 'looks at the code', 'test_repository.py::test_the_workflow_is_ci_run'),
    r'pip install pre-commit ': Instead(
        None, 'fetches packages', 'test_repository.py::test_pre_commit_has_the_pinned_ruff'
    ),
    r'pip (uninstall|install (torch|wheel|--no-build-isolation mmcv|"?\.))': Instead(
        None, 'fetches and compiles packages', 'test_wheel.py::test_wheel_works_on_its_own'
    ),
    rf'{VARIABLES}tools/dist_\w+\.sh ': Instead(
        '--dry-run',
        'several GPUs or machines',
        'tools/test_launchers.py::test_dead_rank_ends_the_job_which_resumes_and_tests',
    ),
    rf'{VARIABLES}python tools/study\.py ': Instead(
        '--dry-run', 'trains many detectors', 'tools/test_study.py::test_runs_and_compares_what_can_be_trained'
    ),
    rf'{VARIABLES}tools/gpu_check\.sh ': Instead(
        '--dry-run', 'needs a GPU', 'tools/test_gpu_check.py::test_a_failed_step_does_not_stop_the_next_ones'
    ),
    r'docker (build|run) ': Instead(None, 'needs Docker', 'test_dockerfile.py::test_copied_and_run_files_exist'),
    rf'{VARIABLES}tools/s\w+\.sh ': Instead(
        '--dry-run', 'Slurm', 'tools/test_slurm.py::test_requeued_job_ends_as_the_unbroken_one'
    ),
}
# Incomplete Python. A test adds the rest.
PARTS = {
    'options.md': 'test_docs.py::test_options_of_grc',
    'export.md': 'models/test_export.py::test_as_the_page_says',
    'other_detectors.md': 'test_docs.py::test_other_detector',
}


def entry(table, command):
    """The table's value for a command, or None."""
    return next((value for pattern, value in table.items() if re.match(pattern, command)), None)


def filled_in(command):
    for placeholder, value in PLACEHOLDERS.items():
        command = re.sub(rf'(?<!\w){re.escape(placeholder)}(?!\w)', value, command)
    left = re.search(r'(?<!\$)\b[A-Z][A-Z_]+\b(?!=)|/path/\S*', command)
    assert not left, f'{left[0]} is no entry of PLACEHOLDERS'
    return command


def shortened(command, trials):
    """The command with the options for a trial from the text `trials`."""
    place = entry(TRIALS, command)
    if place is None:
        return command
    options = re.search(place, trials, re.S)
    assert options, 'the command takes long, and its page has no options to try it with'
    return command if command.endswith(options[1]) else f'{command} {options[1]}'


class Clone:
    """A copy of the repository, with its environment, and COCO beside it."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not re.match(r'.+_ROOT$|PYTHON$|GPUS|PORT$', name)},
            'PYTHONPATH': str(folder),
            'CUDA_VISIBLE_DEVICES': '',
            'OMP_NUM_THREADS': '1',
        }
        self.followed = set()
        self.typed = set()
        # What lasts in a shell.
        self.state = [ACTIVATE]

    def follow(self, page):
        """Follow a page, once."""
        if page in self.followed:
            return
        self.followed.add(page)
        text = page.read_text()
        linked = TRIAL_PAGES.get(page.name, [])
        for name in linked:
            assert f']({name if page.parent == REPOSITORY else name.removeprefix("docs/")})' in text, name
        trials = '\n'.join([text, *((REPOSITORY / name).read_text() for name in linked)])
        self.state = [ACTIVATE]
        for block in BLOCK.finditer(text):
            language, content = block.groups()
            assert language in ('shell', 'python'), f'{page.name}: ```{language}'
            if language == 'shell':
                for line in content.splitlines():
                    if command := re.sub(r'(^|\s+)#.*', '', line):
                        self.follow_command(command, trials, page.name)
            elif name := re.search(r'`([\w./]+)`:\s*$', text[: block.start()]):
                (self.folder / name[1]).write_text(content)
            elif page.name not in PARTS:
                self.type(f'python -c {shlex.quote(content)}', page.name)

    def follow_command(self, command, trials, page):
        try:
            assert '\\' not in command, 'a command on several lines'
            line = filled_in(command)
            if instead := entry(NOT_EXECUTED, command):
                for word in shlex.split(line):
                    assert not word.startswith('configs/') or (self.folder / word).is_file(), f'there is no {word}'
                line = instead.option and f'{line} {instead.option}'
            else:
                line = shortened(line, trials)
        except AssertionError as error:
            raise AssertionError(f'{page}: {command}: {error}') from error
        if line:
            self.type(line, page)
            if line.startswith(('export ', '. ')):
                self.state.append(line)

    def type(self, line, page):
        """Run a line in a shell, unless it ran in the same state before."""
        script = '\n'.join([*self.state, line])
        if script in self.typed:
            return
        self.typed.add(script)
        result = subprocess.run(
            ['bash', '-ec', script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        report = f'{page}: {line}\n{result.stdout[-3000:]}'
        assert result.returncode == 0, report
        assert 'Traceback' not in result.stdout, report
        for option, value in itertools.pairwise(shlex.split(line)):
            if option in ('--out', '--out-dir'):
                assert (self.folder / value).exists(), f'{value} is not there after {report}'


def write_coco(root):
    """Shapes with the names of COCO's first classes, in COCO's layout."""
    write_shapes(root, images=4, val=2, size=(96, 64), seed=3)
    categories = [{'id': i, 'name': name} for i, name in enumerate(CocoDataset.METAINFO['classes'], start=1)]
    for split in ('train', 'val'):
        (root / split).rename(root / f'{split}2017')
        annotations = root / 'annotations' / f'instances_{split}.json'
        content = {**json.loads(annotations.read_text()), 'categories': categories}
        annotations.with_name(f'instances_{split}2017.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def clone():
    with tempfile.TemporaryDirectory(prefix='mmgrc-') as folder:
        folder = Path(folder) / 'mmgrc'
        left_out = ('.git', '.venv', 'data', 'work_dirs', 'build', '.*_cache', '__pycache__', '.hypothesis')
        shutil.copytree(REPOSITORY, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
        for config in ('mask_rcnn_grc_pvt.py', 'shapes/mask_rcnn_grc_pvt.py'):
            with (folder / 'configs' / config).open('a') as file:
                file.write(NARROW)
        write_coco(folder / 'elsewhere' / 'coco')
        write_yolo(folder / 'elsewhere' / 'yolo', make_scenes('polygon'))
        (folder / 'data').mkdir()
        (folder / 'data' / 'coco').symlink_to('../elsewhere/coco')
        # Like the file on PVT's release page, but small.
        stock = PyramidVisionTransformer(embed_dims=16, num_layers=[1, 1, 1, 1])
        torch.save(original_pvt(stock.state_dict()), folder / 'pvt_tiny.pth')
        # ruff reads .gitignore only in a repository.
        subprocess.run(['git', 'init', '-q', folder], check=True)
        clone = Clone(folder)
        venv.create(folder / '.venv')
        # Newer than what the environment is made from.
        (folder / '.venv' / '.installed').touch()
        with forked_python(folder) as python:
            (folder / '.venv' / 'bin' / 'python').unlink()
            (folder / '.venv' / 'bin' / 'python').symlink_to(python)
            package = folder / 'mmgrc'
            clone.type(f'python -c "import mmgrc; assert mmgrc.__path__ == [\'{package}\']"', 'this test')
            yield clone


@pytest.mark.slow
@pytest.mark.xdist_group('commands')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page(page, clone):
    # The README creates the demo and the detector of COCO.
    clone.follow(PAGES[0])
    clone.follow(page)


@pytest.mark.parametrize('test', [*(instead.test for instead in NOT_EXECUTED.values()), *PARTS.values()])
def test_what_is_not_executed_has_a_test(test):
    path, name = test.split('::')
    assert re.search(rf'^ *def {name}\(', (REPOSITORY / 'tests' / path).read_text(), re.M)
