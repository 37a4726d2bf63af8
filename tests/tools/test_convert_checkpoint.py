"""`tools/convert_checkpoint.py` as a user runs it."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.conftest import REPOSITORY, SHAPES_CONFIG
from tests.helpers.published import published_grc


def test_converts_and_counts(run_tool, tmp_path):
    options = {'type': 'GRCPyramidVisionTransformer', 'embed_dims': 16, 'num_layers': [1, 1, 1, 1]}
    model = MODELS.build(options)
    torch.save(published_grc(model.state_dict()), tmp_path / 'published.pth')
    result = run_tool('convert_checkpoint', tmp_path / 'published.pth', tmp_path / 'ours.pth')
    assert result.returncode == 0, result.stderr
    total = len(model.state_dict())
    assert f'{total} tensors loaded, 0 missing, 0 new (the memory), 0 of the' in result.stdout
    options['init_cfg'] = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'ours.pth')}
    other = MODELS.build(options)
    other.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_fails_where_nothing_matches(run_tool, tmp_path):
    torch.save({'state_dict': {'conv1.weight': torch.zeros(3)}}, tmp_path / 'resnet.pth')
    for src, words in (('resnet.pth', 'not a checkpoint of a PVT'), ('missing.pth', 'missing.pth cannot be read')):
        result = run_tool('convert_checkpoint', tmp_path / src, tmp_path / 'out.pth')
        assert result.returncode == 1
        assert words in result.stderr
        assert 'Traceback' not in result.stderr
        assert not (tmp_path / 'out.pth').exists()


def test_resizes_caches_between_two_configs(run_tool, tmp_path):
    base = Config.fromfile(REPOSITORY / SHAPES_CONFIG)
    base.merge_from_dict({'model.backbone.embed_dims': 16, 'model.neck.in_channels': [16, 32, 80, 128]})
    changes = {
        'old': {},
        'new': {'cache_sizes': [16, 8, 8, 4]},
        'wider': {'cache_sizes': [16, 8, 8, 4], 'cache_ratio': 1.0},
    }
    models = {}
    for name, change in changes.items():
        config = base.copy()
        config.merge_from_dict({f'model.backbone.grc.{key}': value for key, value in change.items()})
        config.dump(tmp_path / f'{name}.py')
        models[name] = MODELS.build({**Config.fromfile(tmp_path / f'{name}.py').model, '_scope_': 'mmdet'})
    torch.save({'meta': {'epoch': 3}, 'state_dict': models['old'].state_dict()}, tmp_path / 'old.pth')

    files = [tmp_path / name for name in ('old.pth', 'new.pth')]
    result = run_tool('convert_checkpoint', *files, '--resize-caches', tmp_path / 'old.py', tmp_path / 'new.py')
    assert result.returncode == 0, result.stderr
    assert '8 caches resized' in result.stdout
    written = torch.load(files[1])
    models['new'].load_state_dict(written['state_dict'], strict=True)
    assert written['meta']['epoch'] == 3
    assert Config.fromstring(written['meta']['cfg'], '.py').model.backbone.grc.cache_sizes == [16, 8, 8, 4]

    files[1].unlink()
    result = run_tool('convert_checkpoint', *files, '--resize-caches', tmp_path / 'old.py', tmp_path / 'wider.py')
    assert result.returncode == 1
    assert 'The two configs may differ only in grc.cache_sizes' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not files[1].exists()


def test_replaces_the_content_of_the_caches(run_tool, tmp_path):
    options = {'type': 'GRCPyramidVisionTransformer', 'embed_dims': 16, 'num_layers': [1, 1, 1, 1]}
    states = {}
    for name, other in (('trained', {}), ('other', {}), ('larger', {'grc': {'cache_sizes': (8, 8, 8, 4)}})):
        state = MODELS.build({**options, **other}).state_dict()
        states[name] = {f'backbone.{key}': torch.randn_like(value) for key, value in state.items()}
        torch.save({'meta': {'epoch': 3}, 'state_dict': states[name]}, tmp_path / f'{name}.pth')
    trained, files = states['trained'], [tmp_path / 'trained.pth', tmp_path / 'out.pth']
    for source in ('zeros', 'shuffled', tmp_path / 'other.pth'):
        result = run_tool('convert_checkpoint', *files, '--replace-caches', source)
        assert result.returncode == 0, result.stderr
        assert f'4 caches replaced ({source}), {len(trained) - 4} other tensors unchanged' in result.stdout
        written = torch.load(files[1])
        assert written['meta']['epoch'] == 3
        assert written['state_dict'].keys() == trained.keys()
        for key, value in written['state_dict'].items():
            if not key.endswith('.grc.cache'):
                assert torch.equal(value, trained[key]), key
            elif source == 'zeros':
                assert not value.any()
            elif source == 'shuffled':
                assert not torch.equal(value, trained[key])
                # Whole cells have moved.
                assert sorted(value[0].tolist()) == sorted(trained[key][0].tolist())
            else:
                assert torch.equal(value, states['other'][key])

    files[1].unlink()
    for source, words in (
        (tmp_path / 'larger.pth', 'backbone.layers.0.1.1.attn.grc.cache: the checkpoint has (1, 3136, 8), the other'),
        ('zero', 'zero cannot be read'),
    ):
        result = run_tool('convert_checkpoint', *files, '--replace-caches', source)
        assert result.returncode == 1
        assert words in result.stderr
        assert 'Traceback' not in result.stderr
        assert not files[1].exists()
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'resnet.pth')
    result = run_tool('convert_checkpoint', tmp_path / 'resnet.pth', files[1], '--replace-caches', 'zeros')
    assert 'the checkpoint has no cache' in result.stderr
