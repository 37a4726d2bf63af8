"""Write a small labelled set of images in the formats that `mmgrc.conversion` reads, as their own programs do."""

import base64
import itertools
import json
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np

CLASSES = ('cat', 'a "dog" & <co>', 'żaba')


class Thing(NamedTuple):
    """An object. It has one of the three."""

    label: str
    box: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom."""
    polygon: np.ndarray | None = None
    """(N, 2)."""
    mask: np.ndarray | None = None
    """(H, W), bool."""


class Scene(NamedTuple):
    name: str
    width: int
    height: int
    things: list[Thing]


def make_scenes(kind, seed=0, number=5):
    """Images of several sizes, each with objects of one kind: `box`, `polygon` or `mask`. The last has none."""
    rng = np.random.default_rng(seed)
    scenes = []
    for i in range(number):
        width, height = int(rng.integers(40, 90)), int(rng.integers(40, 90))
        things = []
        for j in range(0 if i == number - 1 else 3):
            # In separate cells, so that a picture of all masks has each whole.
            left, top = 1 + (j % 2) * width // 2, 1 + (j // 2) * height // 2
            right, bottom = left + int(rng.integers(10, width // 2 - 2)), top + int(rng.integers(10, height // 2 - 2))
            angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
            centre, radii = np.array([left + right, top + bottom]) / 2, np.array([right - left, bottom - top]) / 2
            polygon = (centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2)
            mask = np.zeros((height, width), np.uint8)
            cv2.rectangle(mask, (left, top), (right - 1, bottom - 1), 1, -1)
            # With a hole, and a second part.
            cv2.rectangle(mask, (left + 2, top + 2), (left + 5, top + 5), 0, -1)
            mask[top + 7] = 0
            shapes = {'box': (left, top, right, bottom), 'polygon': polygon, 'mask': mask.astype(bool)}
            things.append(Thing(CLASSES[(i + j) % len(CLASSES)], **{kind: shapes[kind]}))
        scenes.append(Scene(f'{i} image.png', width, height, things))
    return scenes


def write_image(path, scene):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(scene.width).integers(0, 255, (scene.height, scene.width, 3), np.uint8)
    assert cv2.imwrite(str(path), picture)


def write_yolo(root, scenes):
    for scene in scenes:
        write_image(root / 'images' / scene.name, scene)
        lines = []
        for thing in scene.things:
            size = np.array([scene.width, scene.height])
            if thing.polygon is not None:
                values = (thing.polygon / size).ravel()
            else:
                low, high = np.array(thing.box[:2]), np.array(thing.box[2:])
                values = np.concatenate([(low + high) / 2 / size, (high - low) / size])
            lines.append(' '.join([str(CLASSES.index(thing.label)), *(f'{value:.8f}' for value in values)]))
        # Programs leave out the file of an image without objects, or write an empty one.
        if lines:
            label = (root / 'labels' / scene.name).with_suffix('.txt')
            label.parent.mkdir(exist_ok=True)
            label.write_text('\n'.join(lines) + '\n')
    # JSON is YAML.
    content = {'path': str(root), 'train': 'images', 'names': dict(enumerate(CLASSES))}
    (root / 'data.yaml').write_text(json.dumps(content))


def voc_xml(scene, objects):
    """The file of an image. An object has a name, a box (pixels from 1, the last included), and more elements."""
    parts = [
        f'<object><name>{escape(name)}</name>{more}<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>'
        f'<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>'
        for name, box, more in objects
    ]
    return (
        f'<annotation><folder>JPEGImages</folder><filename>{escape(scene.name)}</filename><size><width>{scene.width}'
        f'</width><height>{scene.height}</height><depth>3</depth></size>{"".join(parts)}</annotation>'
    )


def write_voc(root, scenes):
    (root / 'Annotations').mkdir(parents=True)
    for scene in scenes:
        write_image(root / 'JPEGImages' / scene.name, scene)
        numbers = np.zeros((scene.height, scene.width), np.uint8)
        objects = []
        for number, thing in enumerate(scene.things, start=1):
            if thing.mask is not None:
                numbers[thing.mask] = number
            left, top, right, bottom = thing.box or extent(thing.mask)
            objects.append((thing.label, (left + 1, top + 1, right, bottom), ''))
        (root / 'Annotations' / scene.name).with_suffix('.xml').write_text(voc_xml(scene, objects), encoding='utf-8')
        if any(thing.mask is not None for thing in scene.things):
            (root / 'SegmentationObject').mkdir(exist_ok=True)
            numbers[0] = 255
            cv2.imwrite(str((root / 'SegmentationObject' / scene.name).with_suffix('.png')), numbers)


def extent(mask):
    """Left, top, right and bottom of a mask."""
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def write_labelme(root, scenes):
    for scene in scenes:
        write_image(root / scene.name, scene)
        shapes = []
        for thing in scene.things:
            shape = {'label': thing.label, 'group_id': None, 'flags': {}}
            if thing.polygon is not None:
                shape |= {'shape_type': 'polygon', 'points': thing.polygon.tolist()}
            elif thing.box is not None:
                left, top, right, bottom = thing.box
                # Drawn from the lower right to the upper left.
                shape |= {'shape_type': 'rectangle', 'points': [[right, bottom], [left, top]]}
            else:
                left, top, right, bottom = extent(thing.mask)
                part = thing.mask[top:bottom, left:right].astype(np.uint8) * 255
                content = base64.b64encode(cv2.imencode('.png', part)[1].tobytes()).decode()
                points = [[left, top], [right - 1, bottom - 1]]
                shape |= {'shape_type': 'mask', 'points': points, 'mask': content}
            shapes.append(shape)
        content = {
            'version': '5.5.0',
            'shapes': shapes,
            'imagePath': scene.name,
            'imageData': None,
            'imageHeight': scene.height,
            'imageWidth': scene.width,
        }
        (root / scene.name).with_suffix('.json').write_text(json.dumps(content))


def cvat_xml(scenes, shapes_of):
    labels = ''.join(f'<label><name>{escape(name)}</name><type>any</type></label>' for name in CLASSES)
    images = ''.join(
        f'<image id="{i}" name={quoteattr(scene.name)} width="{scene.width}" height="{scene.height}">'
        f'{"".join(shapes_of(scene))}</image>'
        for i, scene in enumerate(scenes)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>'
        f'{labels}</labels></task></meta>{images}</annotations>'
    )


def write_cvat(root, scenes):
    def shapes_of(scene):
        for thing in scene.things:
            start = f'label={quoteattr(thing.label)} source="manual" occluded="0" z_order="0"'
            if thing.polygon is not None:
                points = ';'.join(f'{x:.2f},{y:.2f}' for x, y in thing.polygon)
                yield f'<polygon {start} points="{points}"></polygon>'
            elif thing.box is not None:
                sides = ' '.join(f'{k}="{v:.2f}"' for k, v in zip(('xtl', 'ytl', 'xbr', 'ybr'), thing.box, strict=True))
                yield f'<box {start} {sides}><attribute name="colour">red</attribute></box>'
            else:
                left, top, right, bottom = extent(thing.mask)
                runs = cvat_runs(thing.mask[top:bottom, left:right])
                yield (
                    f'<mask {start} rle="{", ".join(map(str, runs))}" left="{left}" top="{top}" '
                    f'width="{right - left}" height="{bottom - top}"></mask>'
                )

    for scene in scenes:
        write_image(root / 'images' / scene.name, scene)
    (root / 'annotations.xml').write_text(cvat_xml(scenes, shapes_of), encoding='utf-8')


def cvat_runs(mask):
    """Lengths of the runs of a mask, row by row, the first of them outside."""
    runs = [(value, len(list(group))) for value, group in itertools.groupby(mask.ravel().tolist())]
    return [0] * (bool(runs) and bool(runs[0][0])) + [length for _, length in runs]


def label_studio_task(number, scene, results, image=None):
    sizes = {'original_width': scene.width, 'original_height': scene.height, 'image_rotation': 0}
    return {
        'id': number,
        'data': {'image': image or f'/data/upload/7/0a1b2c3d-{scene.name.replace(" ", "%20")}'},
        'annotations': [
            {
                'id': number,
                'was_cancelled': False,
                'ground_truth': False,
                'updated_at': '2026-01-01T00:00:00Z',
                'result': [
                    {'id': f'r{i}', 'from_name': 'label', 'to_name': 'image', **sizes, **result}
                    for i, result in enumerate(results)
                ],
            }
        ],
        'predictions': [],
    }


def write_label_studio(root, scenes):
    tasks = []
    for number, scene in enumerate(scenes, start=1):
        write_image(root / 'images' / scene.name, scene)
        percent = 100 / np.array([scene.width, scene.height])
        results = []
        for thing in scene.things:
            if thing.polygon is not None:
                value = {'points': (thing.polygon * percent).tolist(), 'closed': True}
                kind = 'polygonlabels'
            elif thing.box is not None:
                left, top, right, bottom = np.array(thing.box) * [*percent, *percent]
                value = {'x': left, 'y': top, 'width': right - left, 'height': bottom - top, 'rotation': 0}
                kind = 'rectanglelabels'
            else:
                value, kind = {'format': 'rle', 'rle': brush_bytes(thing.mask)}, 'brushlabels'
            results.append({'type': kind, 'value': {**value, kind: [thing.label]}})
        tasks.append(label_studio_task(number, scene, results))
    (root / 'export.json').write_text(json.dumps(tasks))


def brush_bytes(mask):
    """A mask as the brush of Label Studio stores it: four equal channels, compressed as `@thi.ng/rle-pack` does."""
    values = np.repeat(mask.ravel() * 255, 4).tolist()
    sizes = (3, 4, 8, 16)
    bits = f'{len(values):032b}{8 - 1:05b}' + ''.join(f'{size - 1:04b}' for size in sizes)
    for value, group in itertools.groupby(values):
        left = len(list(group))
        while left:
            length = min(left, 1 << sizes[-1])
            index = next(i for i, size in enumerate(sizes) if length <= 1 << size)
            # Short runs are written value by value, which the format allows.
            repeated = length > 4
            body = f'{value:08b}' * (1 if repeated else length)
            bits += f'{int(repeated)}{index:02b}{length - 1:0{sizes[index]}b}{body}'
            left -= length
    bits += '0' * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


WRITERS = {
    'yolo': write_yolo,
    'voc': write_voc,
    'labelme': write_labelme,
    'cvat': write_cvat,
    'labelstudio': write_label_studio,
}
KINDS = {
    'yolo': ('box', 'polygon'),
    'voc': ('box', 'mask'),
    'labelme': ('box', 'polygon', 'mask'),
    'cvat': ('box', 'polygon', 'mask'),
    'labelstudio': ('box', 'polygon', 'mask'),
}


def read_result(out: Path, split):
    """The content of a converted annotation file."""
    return json.loads((out / 'annotations' / f'instances_{split}.json').read_text())
