"""Output files that cannot be written are an error before the work: each tool that has an option for one."""

import re

import pytest

from tests.conftest import REPOSITORY, SHAPES_CONFIG

DRAWING = ('draw_predictions', 'visualize_memory', 'plot_run', 'plot_lambda')
OTHERS = ('test', 'report', 'export_onnx', 'convert_checkpoint', 'benchmark')


@pytest.fixture(scope='module')
def commands(trained, shapes):
    """For each tool with an output file: its arguments, those that name the file without it, and a format it writes."""
    config, checkpoint = trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth'
    benchmark = ['--config', SHAPES_CONFIG, '--size', 64, 64, '--runs', 1]
    return {
        'test': ([config, checkpoint, '--work-dir', trained / 'test', '--out'], '.pkl'),
        'draw_predictions': ([config, trained / 'predictions.pkl', '--out'], '.png'),
        'visualize_memory': ([config, checkpoint, shapes / 'val' / '000001.png', '--out'], '.png'),
        'plot_run': ([trained, '--out'], '.svg'),
        'plot_lambda': ([checkpoint, '--out'], '.png'),
        'report': ([trained, '--out'], '.html'),
        'export_onnx': ([config, checkpoint, '--out'], '.onnx'),
        'convert_checkpoint': ([checkpoint, '--replace-caches', 'zeros'], '.pth'),
        'benchmark': ([*benchmark, '--json', trained / 'good.json', '--markdown'], '.md'),
    }


def test_every_such_tool_is_here(commands):
    option = re.compile(r"add_argument\(\s*'(--out|--json|--markdown|dst)'")
    found = {path.stem for path in (REPOSITORY / 'tools').glob('*.py') if option.search(path.read_text())}
    # MMDetection's own. That of mmpretrain is in test_pretrain.py. convert_dataset writes a folder.
    assert {*found, 'test'} - {'convert_dataset'} == set(commands) == {*DRAWING, *OTHERS}


@pytest.mark.parametrize('tool', [*DRAWING, *OTHERS])
def test_no_work_is_done_for_a_file_that_cannot_be_written(run_tool, commands, trained, tmp_path, tool):
    arguments, suffix = commands[tool]
    (tmp_path / 'file').write_text('')
    out = tmp_path / 'file' / f'out{suffix}'
    before = sorted(trained.rglob('*'))
    result = run_tool(tool, *arguments, out)
    assert result.returncode == 1
    assert re.fullmatch(rf'{tool}: {out} cannot be written \(.+\): give another file', result.stderr.splitlines()[-1])
    assert 'Traceback' not in result.stderr
    assert sorted(trained.rglob('*')) == before


@pytest.mark.parametrize('tool', DRAWING)
def test_name_without_a_format(run_tool, commands, tmp_path, tool):
    """Matplotlib would write another file than the named one."""
    result = run_tool(tool, *commands[tool][0], tmp_path / 'new' / 'picture')
    assert result.returncode == 1
    assert f'{tool}: {tmp_path}/new/picture: name it .avif or ' in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_run_is_not_replaced(run_tool, commands, trained):
    config, checkpoint, image = commands['visualize_memory'][0][:3]
    for tool, path, message in (
        ('visualize_memory', image, 'is the image itself'),
        ('export_onnx', checkpoint, 'name it .onnx'),
        ('report', config, 'name it .html or .htm'),
    ):
        before = path.read_bytes()
        result = run_tool(tool, *commands[tool][0], path)
        assert result.returncode == 1
        assert message in result.stderr.splitlines()[-1]
        assert path.read_bytes() == before


def test_folder_is_created(run_tool, commands, tmp_path):
    for tool, suffix in (('plot_run', '.SVG'), ('plot_lambda', '.png'), ('convert_checkpoint', '.pth')):
        arguments, _ = commands[tool]
        out = tmp_path / tool / 'new' / f'out{suffix}'
        run_tool(tool, *arguments, out, check=True)
        assert out.stat().st_size > 1000
