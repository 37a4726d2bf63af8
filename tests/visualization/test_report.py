"""The report of a run: its content, and how a browser shows it."""

import base64
import html
import json
import pickle
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmgrc.datasets import CLASSES
from mmgrc.visualization.curves import read_monitor, read_scalars
from mmgrc.visualization.report import class_ap, write_report

CHROMIUM = next(
    (path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))), None
)
FLAGS = [
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--hide-scrollbars'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
]


@pytest.fixture(scope='module')
def report(run_tool, trained, tmp_path_factory):
    """The page that the tool writes, with predictions in the work dir."""
    folder = tmp_path_factory.mktemp('report')
    work_dir = folder / 'run'
    shutil.copytree(trained, work_dir)
    config, checkpoint = work_dir / 'mask_rcnn_grc_pvt.py', work_dir / 'epoch_2.pth'
    out = work_dir / 'predictions.pkl'
    run_tool('test', config, checkpoint, '--work-dir', folder / 'test', '--out', out, check=True)
    result = run_tool('report', work_dir, check=True)
    # Nothing about the evaluation.
    assert result.stdout == f'{work_dir / "report.html"} is written\n'
    return work_dir / 'report.html'


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.headings, self.cells = [], [], [], []
        self.tag = ''
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tag = tag
        self.links += [value for key, value in attributes.items() if key in ('href', 'src', 'srcset', 'action')]
        if tag == 'img':
            self.images.append(attributes)

    def handle_data(self, data):
        if self.tag == 'h2' and data.strip():
            self.headings.append(data)
        elif self.tag == 'td':
            self.cells.append(data)

    def handle_endtag(self, tag):
        self.tag = ''


def test_stands_alone(report):
    page = Page(report.read_text())
    assert page.headings == [
        *('Summary', 'Curves', 'Memory', 'AP of each class', 'Examples', 'Environment', 'Config'),
    ]
    # Nothing is loaded from elsewhere.
    assert all(link.startswith('data:image/') for link in page.links)
    assert len(page.images) == 2 + 4 + 1 + 4
    for image in page.images:
        data = base64.b64decode(image['src'].split(',')[1])
        assert min(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]) > 150
        assert image['alt']


def test_says_what_was_logged(report):
    work_dir = report.parent
    page, (training, validation) = Page(report.read_text()), read_scalars(work_dir)
    assert f'2 epochs, 16 iterations; the last loss is {training[16]["loss"]:.3f}' in page.cells
    last = validation[2]['coco/bbox_mAP']
    assert any(cell.startswith(f'{last:.3f} after the last validation (epoch 2)') for cell in page.cells)
    assert 'MMEngine' in page.cells
    assert mmengine.__version__ in page.cells
    text = html.unescape(re.search(r'<pre>(.*)</pre>', report.read_text(), re.S)[1])
    assert Config.fromstring(text, '.py').to_dict() == Config.fromfile(work_dir / 'mask_rcnn_grc_pvt.py').to_dict()


def test_monitor_is_read_back(trained):
    series = read_monitor(trained)
    assert set(series) == {
        *('grc_sigma_lambda', 'grc_update_gate', 'grc_reset_gate', 'grc_cache_rms', 'grc_cache_change'),
        'grc_skipped_steps',
    }
    assert len(series['grc_sigma_lambda']) == 8
    assert all(list(values) == [4, 8, 12, 16] for values in series['grc_sigma_lambda'].values())


def test_ap_of_classes_is_the_coco_apis(report, shapes):
    """Detections equal to the ground truth, except that half of the squares are missing."""
    config = Config.fromfile(report.parent / 'mask_rcnn_grc_pvt.py')
    predictions = load(report.parent / 'predictions.pkl')
    truth = COCO(str(shapes / 'annotations' / 'instances_val.json'))
    results = []
    for prediction in predictions:
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=[prediction['img_id']]))
        kept = [a for a in annotations if a['category_id'] != 2 or a['id'] % 2]
        boxes = np.array([[*a['bbox'][:2], *np.add(a['bbox'][:2], a['bbox'][2:])] for a in kept], np.float32)
        prediction['pred_instances'] = {
            'bboxes': torch.tensor(boxes.reshape(-1, 4) + 1),
            'labels': torch.tensor([a['category_id'] - 1 for a in kept]),
            'scores': torch.linspace(0.9, 0.5, len(kept)),
            'masks': [a['segmentation'] for a in kept],
        }
        results += [
            {
                'image_id': a['image_id'],
                'category_id': a['category_id'],
                'score': s,
                'bbox': [*(b[:2]), *(b[2:] - b[:2])],
            }
            for a, s, b in zip(kept, np.linspace(0.9, 0.5, len(kept)), boxes + 1, strict=True)
        ]
    values = class_ap(config, predictions)
    assert set(values) == {'bbox', 'segm'}
    assert values['segm']['circle'] == pytest.approx(1, abs=2e-3)
    for label, name in enumerate(('circle', 'square', 'triangle'), start=1):
        evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
        evaluation.params.catIds = [label]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert values['bbox'][name] == pytest.approx(evaluation.stats[0], abs=6e-4)


def test_ap_of_classes_in_another_order(shapes, tmp_path):
    """MMDetection's metric names the classes in the file's order, and sorts their values by id."""
    content = json.loads((shapes / 'annotations' / 'instances_val.json').read_text())
    content['categories'] = content['categories'][::-1]
    (tmp_path / 'reversed.json').write_text(json.dumps(content))
    truth = COCO(str(tmp_path / 'reversed.json'))
    (wanted,) = truth.getCatIds(catNms=['circle'])
    predictions = []
    for image in truth.imgs:
        boxes = [a['bbox'] for a in truth.loadAnns(truth.getAnnIds(image, wanted))]
        boxes = torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.full((len(boxes),), truth.getCatIds().index(wanted))
        found = {'bboxes': boxes, 'labels': labels, 'scores': torch.ones(len(boxes))}
        predictions.append({'img_id': image, 'ori_shape': (64, 96), 'pred_instances': found})
    config = Config({'test_evaluator': {'type': 'CocoMetric', 'ann_file': str(tmp_path / 'reversed.json')}})
    config.test_dataloader = {'dataset': {'type': 'CocoDataset', 'metainfo': {'classes': CLASSES}}}
    assert class_ap(config, predictions) == {'bbox': {name: name == 'circle' for name in CLASSES}}


def test_without_predictions_and_monitor(trained, tmp_path):
    work_dir = tmp_path / 'run'
    shutil.copytree(trained, work_dir, ignore=shutil.ignore_patterns('*.pth'))
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    log.write_text(''.join(line for line in log.open() if 'grc_' not in line))
    notes = write_report(work_dir, tmp_path / 'report.html')
    assert len(notes) == 3
    assert 'tools/test.py' in notes[2]
    assert len(Page((tmp_path / 'report.html').read_text()).images) == 2


def test_a_later_test_in_the_work_dir(trained, tmp_path):
    """Its default work dir is that of the training. Environment and config are still those of the training."""
    work_dir = tmp_path / 'run'
    shutil.copytree(trained, work_dir)
    config = work_dir / 'mask_rcnn_grc_pvt.py'
    config.write_text(config.read_text().replace('max_epochs=2', 'max_epochs=77'))
    (work_dir / '99991231_000000').mkdir()
    (work_dir / '99991231_000000' / '99991231_000000.log').write_text('of the test')
    write_report(work_dir, tmp_path / 'report.html')
    page = Page((tmp_path / 'report.html').read_text())
    assert mmengine.__version__ in page.cells
    assert 'max_epochs=77' in config.read_text()
    assert 'max_epochs=77' not in (tmp_path / 'report.html').read_text()


def test_the_memory_of_another_backbone(trained, tmp_path):
    """Its layers have other names. The rest of the report is written."""
    work_dir = tmp_path / 'run'
    shutil.copytree(trained, work_dir, ignore=shutil.ignore_patterns('*.pth'))
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    log.write_text(log.read_text().replace('backbone.layers.', 'backbone.own.'))
    notes = write_report(work_dir, tmp_path / 'report.html')
    assert notes[0].startswith("The logged memory is not drawn: 'backbone.own.")
    assert len(Page((tmp_path / 'report.html').read_text()).images) == 2


def test_predictions_of_another_data_set(report, tmp_path):
    predictions = load(report.parent / 'predictions.pkl')
    for content, message in {
        pickle.dumps([{'img_id': 77, 'pred_instances': {}}]): 'is not what tools/test.py --out writes',
        pickle.dumps([{**predictions[0], 'img_id': 77}]): 'the annotations have no image 77',
        pickle.dumps([]): 'is empty',
        b'no pickle': 'is not what tools/test.py --out writes',
    }.items():
        (tmp_path / 'other.pkl').write_bytes(content)
        notes = write_report(report.parent, tmp_path / 'report.html', tmp_path / 'other.pkl')
        assert len(notes) == 1
        assert notes[0].startswith('The predictions cannot be evaluated: ')
        assert message in notes[0]


def test_what_of_the_predictions_can_be_shown(report, tmp_path):
    """With missing images, masks that do not fit, or no detections, the report has the rest."""
    predictions = load(report.parent / 'predictions.pkl')
    found = predictions[1]['pred_instances']
    predictions[0]['img_path'] = '/nowhere/000001.png'
    for mask in found['masks']:
        mask['size'] = mask['size'][::-1]
    predictions[1]['ori_shape'] = predictions[1]['ori_shape'][::-1]
    found['scores'] = found['scores'] * 0 + 0.9
    (tmp_path / 'some.pkl').write_bytes(pickle.dumps(predictions))
    notes = write_report(report.parent, tmp_path / 'report.html', tmp_path / 'some.pkl')
    assert 'Of the examples: /nowhere/000001.png cannot be read: No such file or directory' in notes
    assert any('64 x 96 in the predictions' in note and 'masks do not fit it' in note for note in notes)
    assert len(Page((tmp_path / 'report.html').read_text()).images) == 2 + 4 + 1 + 3

    for prediction in predictions:
        instances = prediction['pred_instances']
        prediction['pred_instances'] = {key: values[:0] for key, values in instances.items()}
    (tmp_path / 'none.pkl').write_bytes(pickle.dumps(predictions))
    notes = write_report(report.parent, tmp_path / 'report.html', tmp_path / 'none.pkl')
    assert any('the predictions have no detections' in note for note in notes)
    page = Page((tmp_path / 'report.html').read_text())
    assert page.headings[3:5] == ['AP of each class', 'Examples']


def test_another_evaluator(report):
    config = Config.fromfile(report.parent / 'mask_rcnn_grc_pvt.py')
    predictions = load(report.parent / 'predictions.pkl')
    expected = class_ap(config, predictions)
    config.test_evaluator = [
        {'type': 'VOCMetric'},
        {**config.test_evaluator, 'prefix': 'own', 'metric_items': ['mAP_50']},
    ]
    assert class_ap(config, predictions) == expected
    for evaluator in ({'type': 'VOCMetric'}, [], None):
        config.test_evaluator = evaluator
        with pytest.raises(ValueError, match='test_evaluator is not a CocoMetric'):
            class_ap(config, predictions)


def test_bad_input(run_tool, tmp_path):
    result = run_tool('report', tmp_path)
    assert result.returncode == 1
    assert 'there is no training log in' in result.stderr
    assert 'Traceback' not in result.stderr


def test_draw_predictions_of_bad_input(run_tool, report, tmp_path):
    config, out = report.parent / 'mask_rcnn_grc_pvt.py', tmp_path / 'out.png'
    predictions = load(report.parent / 'predictions.pkl')
    predictions[0]['img_path'] = '/nowhere/1.png'
    (tmp_path / 'moved.pkl').write_bytes(pickle.dumps(predictions))
    result = run_tool('draw_predictions', config, tmp_path / 'moved.pkl', '--out', out)
    assert result.returncode == 0
    assert 'left out: /nowhere/1.png cannot be read: No such file or directory' in result.stdout
    assert out.is_file()
    # Not the predictions, by mistake.
    result = run_tool('draw_predictions', config, config, '--out', out)
    assert result.returncode == 1
    assert 'is not what tools/test.py --out writes' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium is installed (Debian: apt-get install chromium)')
@pytest.mark.parametrize('width', [390, 1200])
def test_fits_its_window(report, tmp_path, width):
    """On a phone too, nothing is wider than the window, and each picture is shown."""
    page = html.escape(report.read_text(), quote=True)
    (tmp_path / 'frame.html').write_text(
        f'<body style="margin:0"><iframe id="frame" style="border:0;width:{width}px;height:2400px" srcdoc="{page}">'
        '</iframe><script>onload = () => { const page = document.getElementById("frame").contentDocument;'
        'const shown = [...page.images].filter(image => image.naturalWidth > 0 && image.clientWidth > 250).length;'
        'document.title = `${page.documentElement.scrollWidth} ${shown}`; }</script>'
    )
    command = [CHROMIUM, *FLAGS, f'--user-data-dir={tmp_path}/profile', f'--window-size={width},2400']
    address = (tmp_path / 'frame.html').as_uri()
    dom = subprocess.run([*command, '--dump-dom', address], capture_output=True, text=True, timeout=120).stdout
    scroll_width, shown = re.search(r'<title>(\d+) (\d+)</title>', dom).groups()
    assert int(scroll_width) == width
    assert int(shown) == len(Page(report.read_text()).images)

    picture = tmp_path / 'page.png'
    subprocess.run([*command, f'--screenshot={picture}', address], capture_output=True, timeout=120, check=True)
    image = cv2.imread(str(picture))
    assert image.shape[0] == 2400
    assert image.std() > 20
