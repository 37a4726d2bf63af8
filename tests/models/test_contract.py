"""The cache-state contract in one process: what each event does to the caches, for PVT and for Swin."""

import copy
import weakref

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.backbones import FAMILIES, assert_same, build, caches, loss

family = pytest.mark.parametrize('family', FAMILIES)


def gradients(backbone):
    return {name: parameter.grad for name, parameter in backbone.named_parameters()}


# Training and evaluation.


@family
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_training_forward_commits_once_in_place(family, variant):
    backbone = build(family, grc={'variant': variant})
    new_caches, buffers = {}, {}
    for name, branch in backbone.grc_layers().items():
        branch.register_forward_hook(lambda module, args, out, name=name: new_caches.update({name: out[1]}))
        buffers[name] = (branch.cache, branch.cache.data_ptr(), branch.cache._version)
    backbone(torch.randn(2, 3, 64, 96))
    assert_same(caches(backbone), new_caches)
    for name, branch in backbone.grc_layers().items():
        buffer, pointer, version = buffers[name]
        assert branch.cache is buffer
        assert branch.cache.data_ptr() == pointer
        assert branch.cache._version == version + 1
        assert not branch.cache.requires_grad
        assert branch.cache.any()


@family
def test_graph_of_a_step_never_sees_its_commit(family, monkeypatch):
    backbone = build(family)
    backbone(torch.randn(2, 3, 64, 64))
    other = copy.deepcopy(backbone)
    monkeypatch.setattr(other, 'commit', lambda step: None)
    x = torch.randn(2, 3, 64, 96)
    for model in (backbone, other):
        loss(model(x)).backward()
    assert not torch.equal(*(next(iter(caches(model).values())) for model in (backbone, other)))
    assert_same(gradients(backbone), gradients(other))


@family
def test_two_forwards_before_one_backward(family):
    backbone = build(family)
    x = torch.randn(1, 3, 64, 64)
    other = copy.deepcopy(backbone)
    first, second = backbone(x), backbone(2 * x)
    (loss(first) + loss(second)).backward()
    loss(other(x)).backward()
    loss(other(2 * x)).backward()
    assert_same(gradients(backbone), gradients(other), 1e-4)
    assert_same(caches(backbone), caches(other))


@family
def test_evaluation_with_a_graph_survives_a_commit(family):
    backbone = build(family)
    x = torch.randn(1, 3, 64, 64)
    out = backbone.eval()(x)
    backbone.train()(x)
    loss(out).backward()
    assert all(torch.isfinite(grad).all() for grad in gradients(backbone).values())


@family
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_frozen_caches_keep_their_values(family, variant):
    """The step itself, its gradients included, is that of a memory which has the same values at this moment."""
    live, frozen = (build(family, grc={'variant': variant, 'frozen': value}) for value in (False, True))
    live(torch.randn(2, 3, 64, 96))
    frozen.load_state_dict(live.state_dict())
    before = copy.deepcopy(caches(frozen))
    x = torch.randn(2, 3, 64, 96)
    outs = [model(x) for model in (live, frozen)]
    for out in outs:
        loss(out).backward()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outs, strict=True))
    assert_same(gradients(frozen), gradients(live))
    assert_same(caches(frozen), before)
    assert not any(torch.equal(cache, before[name]) for name, cache in caches(live).items())


@family
def test_accumulation_commits_each_micro_batch(family):
    backbone = build(family)
    wrapper = OptimWrapper(torch.optim.SGD(backbone.parameters(), lr=1e-3), accumulative_counts=2)
    wrapper.initialize_count_status(backbone, 0, 4)
    frozen = copy.deepcopy(backbone)
    before = copy.deepcopy(list(backbone.parameters()))
    for x in torch.randn(2, 1, 3, 64, 64):
        with wrapper.optim_context(backbone):
            value = loss(backbone(x))
        frozen(x)
        assert_same(caches(backbone), caches(frozen))
        wrapper.update_params(value)
    assert not torch.equal(before[0], next(backbone.parameters()))


@family
@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
def test_training_mode_without_gradients_commits_too(family, context):
    backbone = build(family)
    other = copy.deepcopy(backbone)
    x = torch.randn(2, 3, 64, 64)
    with context():
        backbone(x)
    other(x)
    assert_same(caches(backbone), caches(other), 1e-6)
    loss(backbone(x)).backward()


@family
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_evaluation_is_a_pure_function(family, variant):
    backbone = build(family, grc={'variant': variant})
    backbone(torch.randn(2, 3, 64, 64))
    before = copy.deepcopy(backbone.state_dict())
    backbone.eval()
    x = torch.randn(3, 3, 64, 96)
    first = backbone(x)
    backbone(torch.randn(2, 3, 96, 64))
    assert_same(first, backbone(x))
    assert_same(backbone.state_dict(), before)
    assert_same(backbone(x[1:2]), [out[1:2] for out in first], 1e-5)


@family
def test_a_padded_image_is_the_same_beside_any_other(family):
    backbone = build(family)
    backbone(torch.randn(2, 3, 64, 64))
    backbone.eval()
    small = pad(torch.randn(1, 3, 64, 64), (0, 32, 0, 32))
    alone = backbone(small)
    for other in (torch.randn(1, 3, 96, 96), 1e3 * torch.randn(1, 3, 96, 96)):
        assert_same(alone, [out[:1] for out in backbone(torch.cat([small, other]))], 1e-5)


@pytest.mark.parametrize('family', ['pvtv2', 'swin'])  # the first PVT's position embedding follows the padded size
@pytest.mark.parametrize('size', [(64, 64), (50, 39)])
def test_padding_of_a_batch_stays_out_of_the_memory(family, size):
    # Stock attention also attends to padding, so only a summary of the first layer's input can be compared.
    backbone = build(family, grc={'variant': 'paper'})
    image = torch.randn(1, 3, *size)
    image = pad(image, (0, -size[1] % 4, 0, -size[0] % 4))
    name = next(iter(backbone.grc_layers()))
    kept = []
    for padding in (0, 32):
        model = copy.deepcopy(backbone)
        model(pad(image, (0, padding, 0, padding)))
        kept.append(caches(model)[name])
    assert_same(*[[cache] for cache in kept], 1e-5)


# Activation checkpointing.


class PeakMemory(TorchDispatchMode):
    """The peak size in bytes of the tensors that are created inside, on any device."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def _free(self, size):
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if torch.is_tensor(tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out


@pytest.mark.parametrize('family', ['pvt', 'pvtv2', 'swin'])
@pytest.mark.parametrize('grc', [None, {'variant': 'paper'}, {'stages': ()}])
def test_checkpointing_changes_nothing(family, grc):
    options = {'drop_path_rate': 0.3, 'drop_rate': 0.1, 'attn_drop_rate': 0.1, 'grc': grc}
    plain, cheap = build(family, **options), build(family, **options, with_cp=True)
    x = torch.randn(2, 3, 64, 96)
    versions = [branch.cache._version for branch in cheap.grc_layers().values()]
    outs = []
    for model in (plain, cheap):
        torch.manual_seed(1)
        outs.append(model(x))
        loss(outs[-1]).backward()
    assert_same(*outs)
    assert_same(gradients(plain), gradients(cheap), 1e-5)
    assert_same(caches(plain), caches(cheap))
    assert [branch.cache._version for branch in cheap.grc_layers().values()] == [v + 1 for v in versions]


@family
def test_checkpointing_saves_memory(family):
    depth = {'num_layers': [2, 2, 2, 2]} if family == 'pvt' else {'depths': (2, 2, 2, 2)}
    peaks = []
    for with_cp in (False, True):
        backbone = build(family, with_cp=with_cp, **depth)
        with PeakMemory() as memory:
            loss(backbone(torch.randn(2, 3, 160, 192))).backward()
        peaks.append(memory.peak)
    assert peaks[1] < 0.7 * peaks[0]


def test_checkpointing_serves_frozen_stages():
    backbone = build('swin', with_cp=True, frozen_stages=1)
    backbone.train()
    loss(backbone(torch.randn(1, 3, 64, 64))).backward()
    missing = [name for name, grad in gradients(backbone).items() if grad is None]
    assert missing
    assert all(name.startswith(('patch_embed', 'stages.0', 'norm0')) for name in missing)


# Values that are not finite.


@family
def test_nonfinite_step_is_not_stored_and_said_once(family, monkeypatch):
    said = []
    monkeypatch.setattr('mmgrc.models.backbones.cached.print_log', lambda message, **_: said.append(message))
    backbone = build(family)
    x = torch.randn(2, 3, 64, 64)
    backbone(x)
    before = caches(backbone)
    bad = x.clone()
    bad[1, 0, 3, 3] = float('inf')
    backbone(bad)
    backbone(bad)
    assert_same(caches(backbone), before)
    assert len(said) == 1
    assert said[0].startswith(f'{next(iter(before))}: the new cache has values that are not finite')
    backbone(x)
    assert not torch.equal(next(iter(before.values())), next(iter(caches(backbone).values())))


@family
def test_layer_with_the_nonfinite_value_is_named(family, monkeypatch):
    said = []
    monkeypatch.setattr('mmgrc.models.backbones.cached.print_log', lambda message, **_: said.append(message))
    backbone = build(family)
    before = caches(backbone)
    name = list(before)[2]
    with torch.no_grad():
        backbone.get_submodule(name).candidate.weight[0, 0] = float('nan')
    backbone(torch.randn(1, 3, 64, 64))
    assert said[0].startswith(f'{name}: ')
    assert_same(caches(backbone), before)


# Copies, moves and modes.


@family
def test_copies_are_independent_and_pickles_whole(family, tmp_path):
    backbone = build(family)
    backbone(torch.randn(2, 3, 64, 64))
    kept = caches(backbone)
    torch.save(backbone, tmp_path / 'backbone.pth')
    loaded = torch.load(tmp_path / 'backbone.pth', weights_only=False)
    x = torch.randn(1, 3, 64, 96)
    copies = [copy.deepcopy(backbone), loaded]
    expected = backbone.eval()(x)
    for model in copies:
        assert_same(caches(model), kept)
        assert_same(model.eval()(x), expected)
        model.train()(x)
        assert not torch.equal(next(iter(caches(model).values())), next(iter(kept.values())))
    assert_same(caches(copies[0]), caches(copies[1]))
    assert_same(caches(backbone), kept)


@family
def test_moves_keep_the_cache(family):
    backbone = build(family)
    backbone(torch.randn(2, 3, 64, 64))
    kept = caches(backbone)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float32):
        backbone.to(dtype)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert all(branch.cache.dtype == expected for branch in backbone.grc_layers().values())
    assert_same(caches(backbone), kept)
    state = backbone.state_dict()

    empty = build(family).to('meta')
    assert all(branch.cache.is_meta for branch in empty.grc_layers().values())
    assert [out.shape for out in empty.eval()(torch.randn(1, 3, 64, 96, device='meta'))] == [
        out.shape for out in backbone.eval()(torch.randn(1, 3, 64, 96))
    ]
    empty.to_empty(device='cpu').load_state_dict(state)
    assert_same(caches(empty), kept)
    x = torch.randn(1, 3, 64, 64)
    assert_same(empty(x), backbone(x))


@family
def test_modes_switch_the_commit(family):
    backbone = build(family)
    x = torch.randn(1, 3, 64, 64)
    for training in (True, False, True, False):
        before = caches(backbone)
        assert backbone.train(training) is backbone
        backbone(x)
        changed = [not torch.equal(a, b) for a, b in zip(before.values(), caches(backbone).values(), strict=True)]
        assert all(changed) if training else not any(changed)
