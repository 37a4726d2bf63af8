"""`tools/make_shapes.py` as a user runs it."""

import cv2


def test_writes_a_data_set(run_tool, tmp_path):
    result = run_tool(
        'make_shapes', tmp_path / 'out', '--images', 3, '--val', 2, '--size', 64, 48, '--seed', 1, check=True
    )
    assert '3 training and 2 validation images' in result.stdout
    assert len(list((tmp_path / 'out' / 'train').glob('*.png'))) == 3
    assert cv2.imread(str(tmp_path / 'out' / 'val' / '000002.png')).shape == (48, 64, 3)

    run_tool('make_shapes', tmp_path / 'hard', '--hard', '--images', 1, '--val', 1, '--size', 64, 48, check=True)
    easy, hard = (cv2.imread(str(tmp_path / name / 'train' / '000001.png')) for name in ('out', 'hard'))
    assert (easy != hard).any()


def test_writes_a_folder_for_each_class(run_tool, tmp_path):
    out = tmp_path / 'classes'
    arguments = ['--classification', '--images', 6, '--val', 3, '--size', 48, 40]
    result = run_tool('make_shapes', out, *arguments, check=True)
    assert '6 training and 3 validation images' in result.stdout
    for split, count in (('train', 2), ('val', 1)):
        counts = {folder.name: len(list(folder.iterdir())) for folder in (out / split).iterdir()}
        assert counts == {'circle': count, 'square': count, 'triangle': count}
    assert all(cv2.imread(str(path)).shape == (40, 48, 3) for path in out.rglob('*.png'))
    run_tool('make_shapes', tmp_path / 'again', *arguments, check=True)
    for path in out.rglob('*.png'):
        assert path.read_bytes() == (tmp_path / 'again' / path.relative_to(out)).read_bytes()


def test_says_what_is_wrong(run_tool, tmp_path):
    (tmp_path / 'file').write_text('')
    for args, words in (
        ([tmp_path / 'file'], 'file'),
        ([tmp_path / 'out', '--images', 0], 'give at least 1'),
        ([tmp_path / 'out', '--size', 8, 8], 'at least 32 pixels'),
        ([tmp_path / 'out', '--classification', '--images', 2], 'give at least 3 of each'),
    ):
        result = run_tool('make_shapes', *args)
        assert result.returncode == 1
        assert words in result.stderr
        assert 'Traceback' not in result.stderr
