"""σ(λ) read from checkpoints equals what was written."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mmgrc.visualization.mix import draw_lambda, plot_lambda, read_lambda


@pytest.fixture
def checkpoint(tmp_path):
    state = {
        'backbone.layers.0.1.1.attn.grc.lam': torch.tensor([0.0]),
        'backbone.layers.1.1.2.attn.grc.lam': torch.tensor([-1.0, 2.0]),
        'backbone.layers.1.1.1.attn.grc.lam': torch.tensor([1.0, 3.0]),
        'neck.weight': torch.zeros(1),
    }
    torch.save({'state_dict': {f'module.{key}': value for key, value in state.items()}}, tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def test_reads_the_sigmoid_of_each_head(checkpoint):
    shares = read_lambda(checkpoint)
    assert [str(layer) for layer in shares] == ['0.0', '1.0', '1.1']
    expected = [[0.0], [1.0, 3.0], [-1.0, 2.0]]
    for heads, logits in zip(shares.values(), expected, strict=True):
        np.testing.assert_allclose(heads, 1 / (1 + np.exp(-np.array(logits))), rtol=1e-6)


def test_draws_a_dot_for_each_head_and_a_bar_for_each_layer(checkpoint):
    figure, axis = plt.subplots()
    shares = read_lambda(checkpoint)
    draw_lambda(axis, shares, 'a')
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([heads.mean() for heads in shares.values()])
    dots = [line.get_ydata() for line in axis.lines if line.get_marker() == 'o']
    np.testing.assert_allclose(np.concatenate(dots), np.concatenate(list(shares.values())))
    plt.close(figure)


def test_a_name_for_each(checkpoint, tmp_path):
    with pytest.raises(ValueError, match='1 checkpoints and 2 names'):
        plot_lambda([checkpoint], tmp_path / 'out.png', ['a', 'b'])


def test_files_without_a_memory(tmp_path):
    torch.save({'state_dict': {'neck.weight': torch.zeros(1)}}, tmp_path / 'stock.pth')
    with pytest.raises(ValueError, match='it belongs to a model without a memory'):
        read_lambda(tmp_path / 'stock.pth')
    with pytest.raises(FileNotFoundError, match='there is no checkpoint'):
        read_lambda(tmp_path / 'nothing.pth')
