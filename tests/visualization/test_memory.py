"""The views of the memory add up to the output of the layer."""

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmgrc.datasets.images import read_image
from mmgrc.inference import load_detector
from mmgrc.models.grc import GRC
from mmgrc.visualization.memory import draw_memory, view_memory


@pytest.fixture(scope='module')
def model(trained):
    return load_detector(Config.fromfile(trained / 'mask_rcnn_grc_pvt.py'), str(trained / 'epoch_2.pth'), 'cpu')


def test_contributions_add_up(model, shapes):
    """The parts of self-attention, memory and convolution add up to the layer's output."""
    image = read_image(shapes / 'val' / '000001.png')
    kept = {}

    def keep(branch, args, output):
        x, o_self, hw_shape, cache, _ = args
        conv = branch.pos_conv(x.unflatten(1, hw_shape).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        share = 1 - branch.lam.sigmoid().repeat_interleave(branch.embed_dims // branch.num_heads)
        kept[branch] = (hw_shape, share * o_self, output[0] - conv - share * o_self, cache)

    branches = [module for module in model.modules() if isinstance(module, GRC)]
    handles = [branch.register_forward_hook(keep) for branch in branches]
    views = view_memory(model, image)
    for handle in handles:
        handle.remove()
    assert len(views) == len(branches) == 8
    for view, branch in zip(views, branches, strict=True):
        hw_shape, from_self, from_memory, cache = kept[branch]
        # 64 x 96 pixels need no padding to 32: all tokens are the image's.
        np.testing.assert_allclose(view.from_self, from_self[0].norm(dim=1).view(hw_shape), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(view.from_memory, from_memory[0].norm(dim=1).view(hw_shape), rtol=1e-3, atol=1e-4)
        assert view.attended.mean() == pytest.approx(1, rel=1e-5)
        assert view.cache.shape == branch.cache_size
        cells = cache[0].numpy()
        np.testing.assert_allclose(
            view.cache.ravel(), np.linalg.norm(cells - cells.mean(0), axis=1), rtol=1e-3, atol=1e-6
        )
    assert not any(module._forward_hooks for module in model.modules())


def test_padding_is_left_out_and_nothing_changes(model, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    image = np.random.default_rng(0).integers(0, 255, (70, 100, 3), np.uint8)  # padded to 96 x 128
    views = view_memory(model, image)
    assert views[0].from_self.shape == (18, 25)  # tokens of 4 pixels: 24 x 32 with the padding
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    draw_memory(views[:2], image, tmp_path / 'memory.png')
    assert min(read_image(tmp_path / 'memory.png').shape[:2]) > 200


def test_attention_is_the_one_of_the_forward():
    """The map, applied to the values, equals the output of the fused kernel."""
    torch.manual_seed(0)
    attention = GRC(embed_dims=16, num_heads=2, cache_size=(4, 6), sr_ratio=2).mem_attn
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x, memory = torch.randn(3, 5, 8), torch.randn(1, 24, 8)
    o_mem = attention(x, memory)
    probabilities = attention.attention_map(x, memory)
    assert probabilities.shape == (3, 2, 5, 6)
    torch.testing.assert_close(probabilities.sum(dim=3), torch.ones(3, 2, 5))
    values = attention.keys_and_values(memory, batch=3)[1]
    torch.testing.assert_close(attention.proj((probabilities @ values).transpose(1, 2).flatten(2)), o_mem)


def test_a_model_without_memory(shapes):
    with pytest.raises(ValueError, match='the model has no memory'):
        view_memory(torch.nn.Linear(1, 1), np.zeros((32, 32, 3), np.uint8))
