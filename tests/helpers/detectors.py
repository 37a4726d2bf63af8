"""Small detectors with random weights that find many objects, and MMDetection's predictions to compare with."""

import itertools

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from torch import nn

from mmgrc.runs.config import build_model, load_config
from tests.conftest import REPOSITORY

PVT = {'model.backbone.embed_dims': 8, 'model.backbone.num_layers': [1] * 4, 'model.neck.in_channels': [8, 16, 40, 64]}
SWIN = {
    'model.backbone.embed_dims': 8,
    'model.backbone.depths': [2, 1, 1, 1],
    'model.backbone.num_heads': [1, 2, 4, 8],
    'model.neck.in_channels': [16, 32, 64],
}
NARROW = {'shapes/mask_rcnn_grc_pvt.py': PVT, 'shapes/retinanet_grc_swin.py': SWIN}
FASTER_RCNN = {
    'model.type': 'FasterRCNN',
    'model.roi_head.mask_head': None,
    'model.roi_head.mask_roi_extractor': None,
}


def build_detector(name, options=None):
    """A detector of a config below `configs/` in evaluation mode, with weights that spread scores and boxes."""
    config = load_config(str(REPOSITORY / 'configs' / name), {**NARROW.get(name, {}), **(options or {})})
    torch.manual_seed(0)
    model = build_model(config)
    if hasattr(model.backbone, 'grc_layers'):
        for layer in model.backbone.grc_layers().values():
            nn.init.normal_(layer.cache)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
        if name.endswith(('retina_reg', 'rpn_reg', 'fc_reg')):
            # Boxes near their anchors and proposals.
            nn.init.normal_(module.weight, std=0.2 if name.endswith('fc_reg') else 0.02)
    model.cfg = config
    model.dataset_meta = dict(config.metainfo)
    return model.eval()


def random_image(rows, cols, seed=0):
    """An image of coloured blocks and noise, uint8, (rows, cols, 3)."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (-(-rows // 16), -(-cols // 16), 3))
    image = blocks.repeat(16, 0).repeat(16, 1)[:rows, :cols] + random.integers(-20, 20, (rows, cols, 3))
    return image.clip(0, 255).astype(np.uint8)


@torch.no_grad()
def predict(model, images):
    """MMDetection's predictions for images as one batch, and its pre-processed images for the export.

    Returns:
        ``pred_instances`` and ``metainfo`` of each image, the batch (B, 3, H, W) and the sizes (B, 2).
    """
    steps = get_test_pipeline_cfg(model.cfg)
    pipeline = Compose([{'type': 'mmdet.LoadImageFromNDArray'}, *(s for s in steps if 'Load' not in s['type'])])
    data = [pipeline({'img': image, 'img_id': i}) for i, image in enumerate(images)]
    batch = {key: [item[key] for item in data] for key in ('inputs', 'data_samples')}
    sizes = np.array([inputs.shape[1:] for inputs in batch['inputs']])
    divisor = model.data_preprocessor.pad_size_divisor
    # What is in the padding must not matter.
    padded = np.full((len(images), 3, *(-(-sizes.max(0) // divisor) * divisor)), 77, np.uint8)
    for inputs, (rows, cols), image in zip(batch['inputs'], sizes, padded, strict=True):
        image[:, :rows, :cols] = inputs
    samples = model.test_step(batch)
    return [(sample.pred_instances.numpy(), sample.metainfo) for sample in samples], padded, sizes


def paste(grid, box, rows, cols):
    """A mask (rows, cols) of probabilities on a grid over a box, by PyTorch's `grid_sample`."""
    left, top, right, bottom = box
    y = ((torch.arange(rows) + 0.5 - top) / (bottom - top) * 2 - 1)[:, None].expand(rows, cols)
    x = ((torch.arange(cols) + 0.5 - left) / (right - left) * 2 - 1)[None].expand(rows, cols)
    sampled = nn.functional.grid_sample(
        torch.as_tensor(grid)[None, None], torch.stack([x, y], 2)[None].float(), align_corners=False
    )
    return sampled[0, 0].numpy()


def assert_same_detections(found, expected, share=1.0):
    """Assert that detections equal MMDetection's.

    Args:
        found: The outputs of the export by name, as arrays.
        expected: What `predict` returned for each image.
        share: How many must have an equal. Rounding may decide about a box at the threshold.
    """
    assert found['image'].tolist() == sorted(found['image'])
    for number, (instances, meta) in enumerate(expected):
        here = found['image'] == number
        scores, labels = found['scores'][here], found['labels'][here]
        boxes = found['boxes'][here] / np.float32(meta['scale_factor'] * 2)
        assert (np.diff(scores) <= 0).all()
        assert abs(len(scores) - len(instances.scores)) <= (1 - share) * len(scores)
        equal = 0
        for i in range(len(scores)):
            same = np.isclose(instances.scores, scores[i], atol=1e-4) & (instances.labels == labels[i])
            same &= np.isclose(instances.bboxes, boxes[i], atol=0.02).all(1)
            if not same.any():
                continue
            equal += 1
            if 'masks' in found:
                # Degenerate boxes have no mask to speak of.
                (place, *_) = np.flatnonzero(same)
                if (boxes[i, 2:] - boxes[i, :2] > 1).all():
                    mask = paste(found['masks'][here][i], boxes[i], *meta['ori_shape'])
                    assert (np.abs(mask - 0.5) < 1e-3)[(mask >= 0.5) != instances.masks[place]].all()
        assert equal >= share * len(scores)


def raise_in_third_step(monkeypatch, model, error):
    """Let the model detect in two batches, and then raise the error."""
    step, number = model.test_step, itertools.count()

    def test_step(data):
        if next(number) == 2:
            raise error
        return step(data)

    monkeypatch.setattr(model, 'test_step', test_step)
