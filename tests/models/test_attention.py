"""The layer for plain PyTorch: equal to the transcription, its ways to commit, and torch as its only requirement."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mmgrc import GRCAttention, commit_caches
from tests.conftest import REPOSITORY
from tests.helpers import reference
from tests.helpers.installed import run_with_packages
from tests.helpers.processes import run_ranks

HW = (6, 5)


def make_layer(**options):
    torch.manual_seed(0)
    layer = GRCAttention(16, 2, (3, 4), **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer.grc.cache.normal_()
    return layer


@pytest.mark.parametrize('variant', ['code', 'paper'])
@pytest.mark.parametrize('training', [True, False])
def test_equals_multihead_attention_with_the_memory_written_out(variant, training):
    layer = make_layer(variant=variant).double().train(training)
    stock = nn.MultiheadAttention(16, 2, batch_first=True).double()
    for name, value in (('in_proj_', layer.qkv), ('out_proj.', layer.proj)):
        for part in ('weight', 'bias'):
            stock.get_parameter(name + part).data.copy_(getattr(value, part))
    x, extents = torch.randn(2, 30, 16, dtype=torch.float64), [(6, 5), (4, 2.5)]
    attn_out = stock(x, x, x, need_weights=False)[0]
    expected, stored = reference.grc(copy.deepcopy(layer.grc), x, attn_out, HW, extents, training)
    before = layer.grc.cache.clone()
    torch.testing.assert_close(layer(x, HW, torch.tensor(extents)), expected)
    torch.testing.assert_close(layer.grc.cache, stored if training else before)


@pytest.mark.parametrize('options', [{}, {'pos_conv': False}, {'variant': 'paper', 'lambda_init': 3.0}])
@pytest.mark.parametrize('training', [True, False])
def test_silent_start(options, training):
    """The layer equals PyTorch's own attention until an optimizer has made a step. Then all of its memory learns."""
    torch.manual_seed(0)
    layer = GRCAttention(16, 2, (3, 4), **options).double().train(training)
    layer.grc.cache.normal_()
    stock = nn.MultiheadAttention(16, 2, batch_first=True).double()
    for name, value in (('in_proj_', layer.qkv), ('out_proj.', layer.proj)):
        for part in ('weight', 'bias'):
            getattr(value, part).data.copy_(nn.init.normal_(stock.get_parameter(name + part)))
    layer.start_silently()
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x, HW), stock(x, x, x, need_weights=False)[0])

    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x, HW).square().mean().backward()
        optimizer.step()
    assert [name for name, value in layer.named_parameters() if not value.grad.any()] == []


def test_silent_start_needs_self_attention_in_the_mix():
    with pytest.raises(ValueError, match=r'lambda_init=30: for a silent start give a number up to 10'):
        GRCAttention(16, 2, 3, lambda_init=30).start_silently()


def test_valid_extents_are_checked():
    layer, x = make_layer(), torch.randn(2, 30, 16)
    for shape in ((2, 3), (1, 2), (2,)):
        with pytest.raises(ValueError, match=re.escape(f'valid has the shape {shape}: give')):
            layer(x, HW, torch.ones(shape))
    # Extents beyond the grid are those of the grid, and an image has at least one token.
    layer.eval()
    inside, outside = (layer(x, HW, torch.tensor(extents)) for extents in ([(6, 5), (1, 3)], [(64, 64), (0, 3)]))
    assert torch.equal(inside, outside)
    assert GRCAttention(16, 2, 3).grc.cache_size == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize('commits', ['itself', 'before', 'after'])
def test_compiled_layers_train(commits):
    """With a backend that derives its own backward graph: it must use the copy of the cache, which then changes."""
    torch._dynamo.reset()
    plain = nn.ModuleList(make_layer(auto_commit=commits == 'itself') for _ in range(2))
    compiled = copy.deepcopy(plain)
    layers = [torch.compile(layer, backend='aot_eager') for layer in compiled]
    for x in torch.randn(2, 2, 30, 16):
        for model, run in ((plain, plain), (compiled, layers)):
            model.zero_grad()
            out = x + run[0](x, HW)
            out = run[1](out, HW).square().sum()
            if commits == 'before':
                commit_caches(model)
            out.backward()
            if commits == 'after':
                commit_caches(model)
        for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        for one, other in zip(compiled, plain, strict=True):
            torch.testing.assert_close(one.grc.cache, other.grc.cache)


def test_commit_at_the_end_of_a_step():
    """The caches are kept until the commit. One value that is not finite stops all of them, once."""
    model = nn.ModuleList(make_layer(auto_commit=number == 2) for number in range(3))
    before = [layer.grc.cache.clone() for layer in model]
    for layer in model:
        layer(torch.randn(2, 30, 16), HW)
    assert [torch.equal(layer.grc.cache, old) for layer, old in zip(model, before, strict=True)] == [True, True, False]
    new_caches = [layer.new_cache.clone() for layer in model[:2]]
    assert commit_caches(model)
    assert all(torch.equal(layer.grc.cache, new) for layer, new in zip(model, new_caches, strict=False))
    model[0](torch.randn(2, 30, 16), HW)
    model[1](torch.full((2, 30, 16), float('nan')), HW)
    assert not commit_caches(model)
    assert all(torch.equal(layer.grc.cache, new) for layer, new in zip(model, new_caches, strict=False))
    assert commit_caches(model)


def test_activation_checkpointing_with_one_commit():
    plain, checkpointed = make_layer(auto_commit=False), make_layer(auto_commit=False)
    x, results = torch.randn(2, 30, 16), []
    for layer, run in (
        (plain, lambda f, *a: f(*a)),
        (checkpointed, lambda f, *a: checkpoint(f, *a, use_reentrant=False)),
    ):
        run(layer, x, HW).square().sum().backward()
        commit_caches(layer)
        results.append([layer.grc.cache, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    exact, half, autocast = make_layer(), make_layer().to(dtype), make_layer()
    x = torch.randn(2, 30, 16)
    expected = exact(x, HW)
    outs = [half(x.to(dtype), HW)]
    with torch.autocast('cpu', dtype):
        outs.append(autocast(x, HW))
    for out, layer in zip(outs, (half, autocast), strict=True):
        assert layer.grc.cache.dtype == torch.float32
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)
        torch.testing.assert_close(layer.grc.cache, exact.grc.cache, rtol=0.05, atol=0.05)


def _train_step(rank):
    layer = make_layer()
    images = torch.randn(2, 1, 30, 16, generator=torch.Generator().manual_seed(1))
    model = DistributedDataParallel(layer)
    model(images[rank], HW).sum().backward()
    # Without the model: a reducer that outlives its process group may hang.
    return layer.grc.cache, layer.qkv.weight.grad


def test_two_ranks_equal_one_process(tmp_path):
    layer = make_layer()
    images = torch.randn(2, 1, 30, 16, generator=torch.Generator().manual_seed(1)).flatten(0, 1)
    (layer(images, HW).sum() / 2).backward()
    for cache, grad in run_ranks(_train_step, 2, tmp_path):
        torch.testing.assert_close(cache, layer.grc.cache)
        torch.testing.assert_close(grad, layer.qkv.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: GRCAttention(15, 2, (3, 4)), 'embed_dims=15 is not a multiple of num_heads=2'),
        (lambda: GRCAttention(16, 2, (3, 4), variant='published'), "'code' and 'paper'"),
        (lambda: GRCAttention(16, 2, (3, 4), cache_ratio=0.3), 'cache_ratio=0.3'),
        (lambda: make_layer()(torch.randn(1, 31, 16), HW), '31 tokens do not fill a grid of that size. Leave out'),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_the_vit_of_the_docs_learns_with_torch_alone(tmp_path):
    """The page's code, in an environment with only torch and its requirements."""
    page = (REPOSITORY / 'docs' / 'pytorch.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.S)
    (tmp_path / 'vit.py').write_text(code + TRAINING)
    result = run_with_packages(['vit.py'], tmp_path, lambda name: name.lower().startswith(tuple(TORCH)))
    assert result.returncode == 0, result.stderr
    assert 'mmdet is not installed (needed: 3.3.0 or newer' in result.stdout


# By the names of modules and of metadata.
TORCH = (
    'torch',
    'functorch',
    'typing_extensions',
    'filelock',
    'sympy',
    'mpmath',
    'networkx',
    'jinja2',
    'markupsafe',
    'fsspec',
)
TRAINING = """
torch.manual_seed(0)
model = ViT(dims=32, heads=2, depth=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
losses = []
for _ in range(30):
    # Bright above, or bright below.
    labels = torch.randint(2, (16,))
    images = 0.3 * torch.randn(16, 3, 32, 40)
    images[labels == 0, :, :16] += 1
    images[labels == 1, :, 16:] += 1
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses
assert all(block.attn.grc.cache.any() for block in model.blocks)
try:
    from mmgrc.models import GRCSwinTransformer
except ImportError as error:
    print(error)
"""
