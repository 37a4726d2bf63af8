import pytest


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    messages = []
    for module in ('coco_metric', 'fast_cocoeval'):
        monkeypatch.setattr(f'mmgrc.evaluation.{module}.print_log', lambda message, **_: messages.append(message))
    return messages
