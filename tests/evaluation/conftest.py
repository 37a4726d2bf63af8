import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def _scope():
    """As in a run: the scope of an earlier test does not matter."""
    init_default_scope('mmdet')


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    messages = []
    for module in ('coco_metric', 'fast_cocoeval'):
        monkeypatch.setattr(f'mmgrc.evaluation.{module}.print_log', lambda message, **_: messages.append(message))
    return messages
