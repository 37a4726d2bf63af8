"""MMDetection's COCO metric with a choice of the library that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from unittest.mock import patch

from mmdet.evaluation.metrics import CocoMetric, coco_metric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from .fast_cocoeval import FastCOCOeval

__all__ = ['FastCocoMetric']

_LIBRARIES = ('auto', 'hotcoco', 'pycocotools')
_INSTALL = 'pip install hotcoco'


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """MMDetection's ``CocoMetric``, computed by hotcoco if it is installed. The results are the same.

    The log says which library computes them. ``proposal_fast`` and ``use_mp_eval=True`` are as in ``CocoMetric``. The
    values of ``classwise=True`` are those of the class that they name, whatever the order of the file's categories.
    ``CocoMetric`` exchanges them if that is not the order of the ids.

    Args:
        library: ``'hotcoco'``; ``'pycocotools'``; or ``'auto'``, which means hotcoco if it is installed.
        kwargs: The arguments of :class:`mmdet.evaluation.CocoMetric`.

    Raises:
        ValueError: ``library`` is none of these, or it is ``'hotcoco'`` with ``use_mp_eval=True``.
        ImportError: ``library`` is ``'hotcoco'``, and hotcoco is not installed.
    """

    def __init__(self, *args, library: str = 'auto', **kwargs) -> None:
        if library not in _LIBRARIES:
            raise ValueError(f'FastCocoMetric: library={library!r}: give one of {", ".join(map(repr, _LIBRARIES))}')
        installed = find_spec('hotcoco') is not None
        if library == 'hotcoco' and not installed:
            raise ImportError(
                f"FastCocoMetric: library='hotcoco', but hotcoco is not installed. Type: {_INSTALL}, or set "
                "library='auto' to use it only where it is installed"
            )
        super().__init__(*args, **kwargs)
        if library == 'hotcoco' and self.use_mp_eval:
            raise ValueError(
                "FastCocoMetric: library='hotcoco' with use_mp_eval=True, which is pycocotools in several processes: "
                'leave one of them out'
            )
        self._fast = installed and library != 'pycocotools' and not self.use_mp_eval
        self._why = '' if installed else f' (faster with hotcoco: {_INSTALL})'

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        # Labels are numbered in the file's order. Afterwards the ids name the classes of pycocotools' arrays, which it
        # sorts.
        self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        files = super().results2json(results, outfile_prefix)
        self.cat_ids = sorted(self.cat_ids)
        return files

    def evaluate(self, size: int) -> dict:
        """Compute the metrics of all ranks' results.

        Args:
            size: Number of images of the data set.

        Returns:
            What ``CocoMetric`` gives.
        """
        if not self._fast:
            print_log(f'COCO: pycocotools evaluates{self._why}', logger='current')
            return super().evaluate(size)
        import hotcoco

        print_log(f'COCO: hotcoco {hotcoco.__version__} evaluates', logger='current')
        # MMDetection names the class nowhere but in its module.
        with patch.object(coco_metric, 'COCOeval', FastCOCOeval):
            return super().evaluate(size)
