"""Detectors in a form that `torch.export` can follow: the same layers, with post-processing of fixed sizes.

MMDetection's post-processing branches on its data. Here each image has a fixed number K of candidates, and those that
are not there have the score :data:`~mmgrc.export.ops.ABSENT`. The detections are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from torch import Tensor, nn

from .ops import ABSENT, nms, roi_align

__all__ = ['OneStage', 'TwoStage', 'make_exportable']


def make_exportable(model: nn.Module) -> OneStage | TwoStage:
    """Wrap a detector for the export.

    Args:
        model: What :func:`~mmgrc.export.supported.check_supported` accepted, in evaluation mode.
    """
    return (TwoStage if hasattr(model, 'roi_head') else OneStage)(model).eval()


class OneStage(nn.Module):
    """RetinaNet from images to detections.

    Args:
        model: The detector.
    """

    outputs: Sequence[str] = ('boxes', 'scores', 'labels', 'image')
    """Names of what :meth:`forward` returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: uint8, (B, 3, H, W), channels as MMDetection reads images (BGR). Values outside the sizes are not
                used.
            sizes: Rows and columns of each image, int64, (B, 2).

        Returns:
            The N detections of all images, image by image and the best first: boxes (N, 4) as corners (x1, y1, x2, y2)
            in pixels, scores (N,), labels (N,), and the index of the image (N,).
        """
        maps = self.model.extract_feat(_preprocess(self.model.data_preprocessor, images, sizes))
        head = self.model.bbox_head
        score_thr = head.test_cfg.score_thr
        boxes, scores, labels, _ = _dense_candidates(head, maps, sizes, head.test_cfg, score_thr)
        boxes, scores, places = _suppress(boxes, scores, labels, head.test_cfg)
        return _detections(boxes, scores, labels.gather(1, places))


class TwoStage(nn.Module):
    """Faster R-CNN or Mask R-CNN from images to detections.

    Args:
        model: The detector.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs = (*OneStage.outputs, 'masks') if model.roi_head.with_mask else OneStage.outputs

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects, see :meth:`OneStage.forward`.

        Returns:
            With a mask head also the probabilities (N, h, w) of each mask, on a grid over its box.
        """
        maps = self.model.extract_feat(_preprocess(self.model.data_preprocessor, images, sizes))
        rpn = self.model.rpn_head
        boxes, scores, _, levels = _dense_candidates(rpn, maps, sizes, rpn.test_cfg)
        proposals, scores, _ = _suppress(boxes, scores, levels, rpn.test_cfg)
        found = boxes, _, labels, image = _detections(*self._classify(maps, proposals, scores, sizes))
        if not self.model.roi_head.with_mask:
            return found
        return *found, self._masks(maps, _rois(image, boxes), labels)

    def _classify(
        self, maps: Sequence[Tensor], proposals: Tensor, scores: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, D, 4), scores and labels (B, D) of proposals (B, P, 4) with scores (B, P)."""
        roi_head = self.model.roi_head
        head, test_cfg, classes = roi_head.bbox_head, roi_head.test_cfg, roi_head.bbox_head.num_classes
        batch, number = scores.shape
        # Only what is there goes through the head. It then returns to its place.
        there = _present(scores)
        rois = _rois(there // number, proposals.flatten(0, 1)[there])
        logits, deltas_there = (out[1:] for out in head(_extract(roi_head.bbox_roi_extractor, maps, rois)))
        scores = proposals.new_full((batch * number, classes), ABSENT)
        scores[there] = logits.softmax(1)[:, :-1]
        # One box for all classes, or one for each.
        each = 1 if head.reg_class_agnostic else classes
        deltas = proposals.new_zeros(batch * number, each * 4)
        deltas[there] = deltas_there
        priors = proposals.flatten(0, 1)[:, None].expand(-1, each, -1)
        boxes = _decode(head.bbox_coder, priors.reshape(batch, -1, 4), deltas.view(batch, -1, 4), sizes)
        boxes = boxes.view(batch, number, each, 4).expand(-1, -1, classes, -1).flatten(1, 2)
        scores = torch.where(scores > test_cfg.score_thr, scores, ABSENT).view(batch, -1)
        labels = torch.arange(classes, device=scores.device).repeat(number).expand(batch, -1)
        boxes, scores, places = _suppress(boxes, scores, labels, test_cfg)
        return boxes, scores, places % classes

    def _masks(self, maps: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """The probabilities (N, h, w) of the masks of regions (N, 5) with labels (N,)."""
        roi_head = self.model.roi_head
        masks = roi_head.mask_head(_extract(roi_head.mask_roi_extractor, maps, rois))[1:].sigmoid()
        if roi_head.mask_head.class_agnostic:
            return masks[:, 0]
        return masks.gather(1, labels[:, None, None, None].expand(-1, 1, *masks.shape[2:]))[:, 0]


def _preprocess(preprocessor: nn.Module, images: Tensor, sizes: Tensor) -> Tensor:
    """Normalise images (B, 3, H, W), and pad outside their sizes (B, 2), as ``DetDataPreprocessor`` does."""
    x = (images.flip(1) if preprocessor._channel_conversion else images).float()
    if preprocessor._enable_normalize:
        x = (x - preprocessor.mean) / preprocessor.std
    rows, cols = (torch.arange(x.shape[axis + 2], device=x.device) < sizes[:, axis, None] for axis in range(2))
    return torch.where(rows[:, None, :, None] & cols[:, None, None, :], x, float(preprocessor.pad_value))


def _dense_candidates(
    head: nn.Module, maps: Sequence[Tensor], sizes: Tensor, test_cfg: ConfigDict, score_thr: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the best ``nms_pre`` boxes of each level of a dense head.

    Args:
        head: A ``RetinaHead`` or ``RPNHead``.
        maps: Feature maps (B, C, H_i, W_i).
        sizes: Rows and columns of each image, (B, 2).
        test_cfg: With ``nms_pre``, and ``min_bbox_size`` if small boxes are dropped.
        score_thr: Scores must be above it. None: any score.

    Returns:
        Boxes (B, K, 4), scores (B, K), labels (B, K), and levels (B, K).
    """
    score_maps, delta_maps = head(maps)
    grids = [score_map.shape[2:] for score_map in score_maps]
    priors_of_levels = head.prior_generator.grid_priors(grids, dtype=score_maps[0].dtype, device=score_maps[0].device)
    number, best = test_cfg.nms_pre, []
    for level, priors in enumerate(priors_of_levels):
        logits, deltas = (
            outs[level].permute(0, 2, 3, 1).reshape(outs[level].shape[0], -1, channels)
            for outs, channels in ((score_maps, head.cls_out_channels), (delta_maps, 4))
        )
        scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(2)[..., :-1]
        classes = scores.shape[2]
        if score_thr is not None:
            scores = torch.where(scores > score_thr, scores, ABSENT)
        # With absent ones before them, there are as many as are taken, at any size of the map.
        scores, index = F.pad(scores.flatten(1), (number, 0), value=ABSENT).topk(number)
        index = (index - number).clamp(min=0)
        anchor, label = index // classes, index % classes
        best.append((priors[anchor], _take(deltas, anchor), scores, label, torch.full_like(label, level)))
    priors, deltas, scores, labels, levels = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
    boxes = _decode(head.bbox_coder, priors, deltas, sizes)
    min_size = test_cfg.get('min_bbox_size', -1)
    if min_size >= 0:
        large = (boxes[..., 2:] - boxes[..., :2] > min_size).all(2)
        scores = torch.where(large, scores, ABSENT)
    return boxes, scores, labels, levels


def _decode(coder: nn.Module, priors: Tensor, deltas: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, K, 4) of priors and deltas (B, K, 4), clipped to images of sizes (B, 2)."""
    boxes = coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1)).view_as(priors)
    if not coder.clip_border:
        return boxes
    return torch.minimum(boxes.clamp(min=0), sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype))


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, test_cfg: ConfigDict) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress boxes that overlap a better one of their group, and take the best of the others.

    Args:
        boxes: (B, K, 4).
        scores: (B, K).
        groups: Labels or levels (B, K).
        test_cfg: With ``nms`` and ``max_per_img``.

    Returns:
        Boxes (B, D, 4), scores (B, D), the best first, and their places (B, D) among the K.
    """
    shifted = boxes
    if not test_cfg.nms.get('class_agnostic', False):
        # Move the groups apart exactly as mmcv does. Its rounding decides about boxes close to the threshold.
        largest = torch.where(scores[..., None] >= 0, boxes, 0).amax((1, 2))
        shifted = boxes + (groups.to(boxes.dtype) * (largest + 1)[:, None])[..., None]
    number = min(test_cfg.max_per_img, scores.shape[1])
    kept = nms(shifted, scores, test_cfg.nms.iou_threshold, number)
    scores, places = torch.where(kept, scores, ABSENT).topk(number)
    return _take(boxes, places), scores, places


def _take(rows: Tensor, places: Tensor) -> Tensor:
    """Rows (B, D, 4) at places (B, D) among rows (B, K, 4)."""
    return rows.gather(1, places[..., None].expand(-1, -1, 4))


def _present(scores: Tensor) -> Tensor:
    """Places (N,) of the boxes that are there among all B D of a batch."""
    return (scores.flatten() >= 0).nonzero()[:, 0]


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is there among boxes (B, D, 4), scores (B, D) and labels (B, D), and the image of each."""
    there = _present(scores)
    return (
        boxes.flatten(0, 1)[there],
        scores.flatten()[there],
        labels.flatten()[there],
        there // scores.shape[1],
    )


def _rois(image: Tensor, boxes: Tensor) -> Tensor:
    """Regions (N, 5) of boxes (N, 4) in images (N,)."""
    return torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)


def _extract(extractor: nn.Module, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """RoIAlign of each region on the level that fits its size, as ``SingleRoIExtractor`` does.

    Returns:
        The features (1 + N, C, h, w) of regions (N, 5), after those of an empty region. So a head always has an input:
        onnxruntime's reshapes of a group norm reject an empty one.
    """
    rois = F.pad(rois, (0, 0, 1, 0))
    layers = extractor.roi_layers
    levels = extractor.map_roi_levels(rois, len(layers))
    out = rois.new_zeros(rois.shape[0], extractor.out_channels, *layers[0].output_size)
    for level, layer in enumerate(layers):
        here = (levels == level).nonzero()[:, 0]
        out[here] = roi_align(
            maps[level], rois[here], *layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
    return out
