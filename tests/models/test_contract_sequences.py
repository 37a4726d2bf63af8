"""Random sequences of training events of a backbone, against a small model of the cache-state contract."""

import copy
import functools
import io

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.helpers.backbones import TWO_STAGES, assert_same, build, caches

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(32, 72), st.integers(32, 72))


@functools.cache
def template(family):
    return build(family, **TWO_STAGES[family])


def random_images(count, size, seed):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


class Contract(RuleBasedStateMachine):
    """The backbone under test, and ``expected``: its caches according to the contract.

    A second backbone gets the same state at each event and computes the effect of one image. By the contract, the
    effect of a batch is the mean over its images.
    """

    family = 'pvt'

    @initialize()
    def start(self):
        self.backbone = copy.deepcopy(template(self.family))
        self.other = copy.deepcopy(template(self.family))
        self.expected = {name: torch.zeros_like(cache) for name, cache in caches(self.backbone).items()}
        self.left_behind = []

    def after_each_image_alone(self, images):
        """The caches that each image alone would give, from the current state."""
        state = copy.deepcopy(self.backbone.state_dict())
        results = []
        for image in images:
            self.other.load_state_dict(state)
            with torch.no_grad():
                self.other.train()(image[None])
            results.append(caches(self.other))
        return results

    def mean_of(self, images):
        alone = self.after_each_image_alone(images)
        return {name: torch.stack([result[name] for result in alone]).mean(dim=0) for name in self.expected}

    def check_commit(self, expected):
        assert_same(caches(self.backbone), expected, tolerance=1e-5)
        # The next event starts from exactly these values.
        self.expected = caches(self.backbone)

    @rule(count=st.integers(1, 3), size=SIZES, seed=SEEDS)
    def training_step(self, count, size, seed):
        images = random_images(count, size, seed)
        expected = self.mean_of(images)
        outs = self.backbone.train()(images)
        # The commit came before the backward pass. It must not affect the graph.
        gradients = torch.autograd.grad(sum(out.square().mean() for out in outs), list(self.backbone.parameters()))
        self.check_commit(expected)
        with torch.no_grad():
            for parameter, gradient in zip(self.backbone.parameters(), gradients, strict=True):
                assert torch.isfinite(gradient).all()
                parameter -= 0.01 * gradient.clamp(-1, 1)

    @rule(size=SIZES, seed=SEEDS)
    def two_forwards_before_one_backward(self, size, seed):
        first, second = random_images(2, size, seed).split(1)
        outs = [*self.backbone.train()(first)]
        self.expected = caches(self.backbone)
        expected = self.mean_of(second)
        outs += self.backbone(second)
        sum(out.sum() for out in outs).backward()
        self.backbone.zero_grad()
        self.check_commit(expected)

    @rule(size=SIZES, seed=SEEDS)
    def training_forward_without_gradients(self, size, seed):
        images = random_images(2, size, seed)
        expected = self.mean_of(images)
        with torch.no_grad():
            self.backbone.train()(images)
        self.check_commit(expected)

    @rule(size=SIZES, seed=SEEDS, bad=st.sampled_from([float('nan'), float('inf'), -float('inf')]))
    def non_finite_batch(self, size, seed, bad):
        images = random_images(2, size, seed)
        images[seed % 2, :, size[0] // 2, size[1] // 2] = bad
        self.backbone.train()(images)

    @rule(count=st.integers(1, 2), size=SIZES, seed=SEEDS)
    def evaluation(self, count, size, seed):
        images = random_images(count, size, seed)
        self.other.load_state_dict(self.backbone.state_dict())
        with torch.no_grad():
            outs = self.backbone.eval()(images)
            again = self.backbone(images)
            alone = [self.other.eval()(image[None]) for image in images]
        assert_same(outs, again)
        assert_same(outs, [torch.cat(maps) for maps in zip(*alone, strict=True)], tolerance=1e-4)

    @rule()
    def save_and_load(self):
        file = io.BytesIO()
        torch.save(self.backbone.state_dict(), file)
        file.seek(0)
        self.backbone = copy.deepcopy(template(self.family))
        self.backbone.load_state_dict(torch.load(file, weights_only=True), strict=True)

    @rule()
    def go_on_with_a_copy(self):
        self.left_behind.append((self.backbone, self.expected))
        self.backbone = copy.deepcopy(self.backbone)

    @rule(dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64]))
    def move_there_and_back(self, dtype):
        self.backbone.to(dtype).to(torch.float32)

    @invariant()
    def caches_are_what_the_contract_says(self):
        if not hasattr(self, 'expected'):
            return
        found = caches(self.backbone)
        assert all(cache.dtype == torch.float32 for cache in found.values())
        assert_same(found, self.expected)
        for backbone, expected in self.left_behind:
            assert_same(caches(backbone), expected)


class SwinContract(Contract):
    family = 'swin'


TestSequences = pytest.mark.slow(Contract.TestCase)
TestSwinSequences = pytest.mark.slow(SwinContract.TestCase)
TestSequences.settings = TestSwinSequences.settings = settings(
    max_examples=125,
    stateful_step_count=6,
    deadline=None,
    # The same sequences in each run.
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
