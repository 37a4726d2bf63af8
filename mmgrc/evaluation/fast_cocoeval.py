"""pycocotools' evaluation with its matching and accumulation computed by hotcoco. The numbers are the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

import numpy as np
from mmengine.logging import print_log
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ['FastCOCOeval']

# The process in which hotcoco has started its threads. A fork of it has none, and would wait for them forever.
_process_with_threads: int | None = None


class FastCOCOeval(COCOeval):
    """pycocotools' ``COCOeval`` for boxes and masks, computed by hotcoco.

    Precision and recall come from hotcoco. pycocotools summarizes them. Data on which the two libraries differ are
    evaluated by pycocotools, with a warning: ids that are not distinct whole numbers, objects without an area, and
    scores or boxes that are not finite. So are those of a process that was forked after hotcoco had run. pycocotools
    draws the masks.

    Results of single images (``evalImgs``, ``ious``) are not stored. The arguments and all else are those of
    ``COCOeval``.

    Raises:
        ImportError: hotcoco is not installed.
    """

    def evaluate(self) -> None:
        """Match detections and ground truth."""
        import hotcoco

        # As pycocotools does, so that the classes of `eval` are in the same order.
        self.params.imgIds = np.unique(self.params.imgIds).tolist()
        if self.params.useCats:
            self.params.catIds = np.unique(self.params.catIds).tolist()
        self.params.maxDets = sorted(self.params.maxDets)
        self._fast = None
        kind = self.params.iouType
        chosen = [self._annotations(coco) for coco in (self.cocoGt, self.cocoDt)]
        if problem := _find_fork() or _find_problem(self.cocoGt, *chosen, kind):
            message = f'COCO: pycocotools evaluates instead of hotcoco, since {problem}'
            print_log(message, logger='current', level=logging.WARNING)
            super().evaluate()
            return
        truth, found = (
            hotcoco.COCO(_select(self.cocoGt, coco, annotations, kind))
            for coco, annotations in zip((self.cocoGt, self.cocoDt), chosen, strict=True)
        )
        self._fast = hotcoco.COCOeval(truth, found, kind)
        for name in ('imgIds', 'catIds', 'iouThrs', 'recThrs', 'maxDets', 'areaRng', 'areaRngLbl', 'useCats'):
            value = getattr(self.params, name)
            setattr(self._fast.params, name, value.tolist() if isinstance(value, np.ndarray) else value)
        global _process_with_threads
        _process_with_threads = os.getpid()
        self._fast.evaluate()

    def _annotations(self, coco: COCO) -> list[dict]:
        """The annotations of the images and classes that are evaluated."""
        classes = self.params.catIds if self.params.useCats else []
        return coco.loadAnns(coco.getAnnIds(imgIds=self.params.imgIds, catIds=classes))

    def accumulate(self, p: object = None) -> None:
        """Compute precision and recall, ``eval``.

        Args:
            p: None. Other parameters than those of ``evaluate`` are not possible.

        Raises:
            ValueError: ``p`` is given.
        """
        if self._fast is None:
            super().accumulate(p)
            return
        if p is not None:
            raise ValueError('FastCOCOeval.accumulate: p is given: set the parameters before evaluate(), leave p out')
        self._fast.accumulate()
        names = ('counts', 'precision', 'recall', 'scores')
        self.eval = {'params': self.params, **{name: self._fast.eval[name] for name in names}}


def _find_fork() -> str | None:
    if _process_with_threads in (None, os.getpid()):
        return None
    return 'this process is a fork of one in which hotcoco ran, without its threads'


def _find_problem(coco: COCO, truth: Sequence[Mapping], found: Sequence[Mapping], kind: str) -> str | None:
    """Why hotcoco might not give pycocotools' numbers, or would not end in its error. None if it gives them."""
    if kind not in ('bbox', 'segm'):
        return f'it is used for bbox and segm, not for {kind}'
    ids = [annotation['id'] for annotation in truth]
    # pycocotools reads the id 0 as no match.
    for values, least, what in (([*coco.imgs], 0, 'images'), ([*coco.cats], 0, 'categories'), (ids, 1, 'annotations')):
        if odd := next((repr(v) for v in values if not isinstance(v, Integral) or not least <= v < 2**63), None):
            return f'the ids of {what} are not all whole numbers from {least} up ({odd}), or not below 2^63'
        if len(set(values)) < len(values):
            return f'the ids of {what} are not distinct'
    if odd := next((a['id'] for a in truth if 'area' not in a or a.get('iscrowd') not in (0, 1)), None):
        return f'annotation {odd} has no area, or an iscrowd that is not 0 or 1'
    # pycocotools gives every detection an area.
    numbers = [[*(a['bbox'] if kind == 'bbox' else ()), a['area'], a.get('score', 0)] for a in (*truth, *found)]
    finite = np.isfinite(np.array(numbers, float)).all(axis=-1)
    if not finite.all():
        odd, images = int(finite.argmin()), [detection['image_id'] for detection in found]
        where = f'annotation {ids[odd]}' if odd < len(ids) else f'a detection in image {images[odd - len(ids)]}'
        return f'{where} has a box, an area or a score that is not finite'
    return None


def _select(truth: COCO, coco: COCO, annotations: Iterable[Mapping], kind: str) -> dict:
    """What hotcoco needs of ground truth or detections. Masks are those of pycocotools: it draws the polygons."""
    selected = []
    for annotation in annotations:
        entry = {key: annotation[key] for key in ('id', 'image_id', 'category_id', 'area')}
        entry['iscrowd'] = int(annotation['iscrowd'])
        if 'score' in annotation:
            entry['score'] = annotation['score']
        if kind == 'bbox':
            entry['bbox'] = annotation['bbox']
        else:
            mask = coco.annToRLE(annotation)
            counts = mask['counts']
            entry['segmentation'] = {
                'size': mask['size'],
                'counts': counts.decode('ascii') if isinstance(counts, bytes) else counts,
            }
        selected.append(entry)
    return {
        'images': [{'id': image} for image in truth.imgs],
        'categories': [{'id': category, 'name': str(category)} for category in truth.cats],
        'annotations': selected,
    }
