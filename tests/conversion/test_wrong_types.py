"""Wrong values in any field of any format give an annotation inside of its image, or one error that names the file."""

import copy
import json
import math
from xml.etree import ElementTree

import pytest
import yaml

from mmgrc.conversion.shapes import coco_annotation, group_shapes
from mmgrc.runs.error import InputError
from tests.helpers.foreign_formats import KINDS, WRITERS, make_scenes
from tests.helpers.readers import read_source

HUGE = 10**400
VALUES = (
    *(None, True, [], [1], [[1, 2], [3]], {}, {'a': [1]}, '', 'text', '\0', 'x' * 300, 'http://[x', '../../x.png'),
    *(0, -5, 0.5, 10**9, HUGE, 1e300, math.nan, math.inf, -math.inf),
)
TEXTS = (
    '',
    ' ',
    'text',
    'x' * 300,
    '../../x.png',
    '-5',
    '0.5',
    '1000000000',
    '9' * 5000,
    '1e300',
    'nan',
    '-inf',
    '1,2;3',
)


def write(root, name, kind):
    """A source with an image and an object. It returns its annotation file."""
    (scene,) = make_scenes(kind, number=2)[:1]
    WRITERS[name](root, [scene._replace(things=scene.things[:1])])
    suffix = {'yolo': '.yaml', 'voc': '.xml', 'cvat': '.xml'}.get(name, '.json')
    (path,) = root.rglob(f'*{suffix}')
    return path


def check(name, root, path, what):
    message = None
    try:
        found, _ = read_source(name, root)
        for image in found.images:
            for shapes in group_shapes(image.shapes):
                annotation = coco_annotation(shapes, image.width, image.height)
                if isinstance(annotation, dict):
                    x, y, width, height = annotation['bbox']
                    assert 0 <= x <= x + width <= image.width + 0.01, what
                    assert 0 <= y <= y + height <= image.height + 0.01, what
    except InputError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f'{what}: {error!r}') from error
    assert message is None or path.name in message, what


def places(content):
    """The containers and keys of all fields of JSON."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from places(content[key])


@pytest.mark.parametrize(
    ('name', 'kind'), [(name, kind) for name in ('labelme', 'labelstudio', 'yolo') for kind in KINDS[name]]
)
def test_fields_of_json_and_yaml(name, kind, tmp_path):
    path = write(tmp_path, name, kind)
    # JSON is YAML, but not with each number.
    dump = yaml.safe_dump if name == 'yolo' else json.dumps
    content = json.loads(path.read_text())
    for number, (holder, key) in enumerate(places(content)):
        # The bytes of a brush are all alike.
        if isinstance(holder, list) and len(holder) > 20 and number % 10:
            continue
        before = holder[key]
        for value in VALUES:
            holder[key] = copy.deepcopy(value)
            path.write_text(dump(content))
            check(name, tmp_path, path, f'{key} = {str(value)[:40]}')
        holder[key] = before


@pytest.mark.parametrize(('name', 'kind'), [(name, kind) for name in ('voc', 'cvat') for kind in KINDS[name]])
def test_fields_of_xml(name, kind, tmp_path):
    pytest.importorskip('defusedxml', reason='to read XML, defusedxml is needed')
    path = write(tmp_path, name, kind)
    tree = ElementTree.parse(path)
    for element in tree.iter():
        for key in (None, *element.keys()):
            before = element.text if key is None else element.get(key)
            for text in TEXTS:
                if key is None:
                    element.text = text
                else:
                    element.set(key, text)
                tree.write(path)
                check(name, tmp_path, path, f'{element.tag} {key} = {text[:40]}')
            if key is None:
                element.text = before
            else:
                element.set(key, before)


@pytest.mark.parametrize('kind', KINDS['yolo'])
def test_fields_of_text(kind, tmp_path):
    write(tmp_path, 'yolo', kind)
    (path,) = tmp_path.rglob('*.txt')
    fields = path.read_text().split()
    for index in range(len(fields)):
        for text in TEXTS:
            path.write_text(' '.join([*fields[:index], text, *fields[index + 1 :]]))
            check('yolo', tmp_path, path, f'field {index} = {text[:40]}')
