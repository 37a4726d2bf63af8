"""`tools/convert_checkpoint.py` as a user runs it."""

import torch
from mmengine.registry import MODELS

from tests.models.published import published_grc


def test_converts_and_counts(run_tool, tmp_path):
    options = {'type': 'GRCPyramidVisionTransformer', 'embed_dims': 16, 'num_layers': [1, 1, 1, 1]}
    model = MODELS.build(options)
    torch.save(published_grc(model.state_dict()), tmp_path / 'published.pth')
    result = run_tool('convert_checkpoint', tmp_path / 'published.pth', tmp_path / 'ours.pth')
    assert result.returncode == 0, result.stderr
    total = len(model.state_dict())
    assert f'{total} tensors loaded, 0 missing, 0 new (the memory, which starts fresh), 0 of the' in result.stdout
    options['init_cfg'] = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'ours.pth')}
    other = MODELS.build(options)
    other.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_fails_where_nothing_matches(run_tool, tmp_path):
    torch.save({'state_dict': {'conv1.weight': torch.zeros(3)}}, tmp_path / 'resnet.pth')
    for src, words in (('resnet.pth', 'no checkpoint of a PVT'), ('missing.pth', 'missing.pth cannot be read')):
        result = run_tool('convert_checkpoint', tmp_path / src, tmp_path / 'out.pth')
        assert result.returncode == 1
        assert words in result.stderr
        assert 'Traceback' not in result.stderr
        assert not (tmp_path / 'out.pth').exists()
