"""User-given names in figures."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from mmengine.logging import MMLogger

from mmgrc.visualization import text
from mmgrc.visualization.curves import draw_metrics
from mmgrc.visualization.layers import Layer
from mmgrc.visualization.mix import draw_lambda
from mmgrc.visualization.text import write_plainly

# From Unicode's private use area: no font has them.
FIRST, SECOND, THIRD = '\ue9a1', '\ue9a2', '\ue9a3'


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """Create and register fonts with given characters."""
    monkeypatch.setattr(fontManager, 'ttflist', list(fontManager.ttflist))
    monkeypatch.setattr(text, '_reported', set())

    def make(name, characters):
        builder = FontBuilder(1000)
        names = {ord(character): f'glyph{i}' for i, character in enumerate(characters)}
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((0, 700), (500, 700), (500, 0)):
            pen.lineTo(point)
        pen.closePath()
        builder.setupGlyphOrder(['.notdef', *names.values()])
        builder.setupCharacterMap(names)
        builder.setupGlyf(dict.fromkeys(['.notdef', *names.values()], pen.glyph()))
        builder.setupHorizontalMetrics(dict.fromkeys(['.notdef', *names.values()], (600, 0)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({'familyName': name, 'styleName': 'Regular', 'psName': name.replace(' ', '')})
        builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200, usWeightClass=400)
        builder.setupPost()
        path = tmp_path / f'{name}.ttf'
        builder.save(path)
        monkeypatch.setattr(text, 'findSystemFonts', lambda: [*map(str, tmp_path.glob('*.ttf'))])
        clear()

    def clear():
        text._installed.cache_clear()
        text._find_fonts.cache_clear()

    clear()
    yield make
    clear()


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(text, 'print_log', lambda message, **_: lines.append(message))
    return lines


def draw(title, label='line'):
    figure = Figure()
    axis = figure.subplots()
    axis.plot([0, 1])
    axis.set(title=title, xlabel=label, ylabel=label)
    axis.legend([label])
    write_plainly(figure)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figure.tight_layout()
        figure.canvas.draw()
    return axis


@pytest.mark.parametrize(
    'name', ['$1_$5 note', '$', r'\$x$', '$$', r'$\frac{', 'a_b^c', r'50% \& more', '', ' ', '${}$']
)
def test_nothing_is_a_formula(name, said):
    axis = draw(name, name)
    assert axis.get_title() == name
    assert axis.get_legend().get_texts()[0].get_text() == name
    assert said == []


def test_panels_of_a_callers_figure():
    """Functions that draw on an axis of the caller leave text that the caller can draw."""
    figure = Figure()
    draw_lambda(figure.subplots(), {Layer(0, 0): np.array([0.2, 0.4])}, '$1_$5')
    draw_metrics(figure.add_subplot(), {1: {'epoch': 1, 'a/$x_$': 0.1}})
    figure.canvas.draw()


def test_fonts_that_have_the_characters_are_added(fonts, said):
    fonts('One Sans', FIRST + SECOND)
    fonts('Other Sans', SECOND + THIRD)
    axis = draw(f'a{FIRST}{THIRD}')
    assert axis.get_title() == f'a{FIRST}{THIRD}'
    assert set(axis.title.get_fontfamily()[1:]) == {'One Sans', 'Other Sans'}
    assert said == []
    # As few as possible.
    fonts('Whole Sans', FIRST + SECOND + THIRD)
    assert draw(f'{FIRST}{THIRD}').title.get_fontfamily()[1:] == ['Whole Sans']
    assert draw('plain').title.get_fontfamily() == ['sans-serif']


def test_a_font_that_draws_nothing_is_not_chosen(fonts, said):
    fonts('Adobe Blank', FIRST)
    assert draw(FIRST).get_title() == '□'
    assert len(said) == 1


def test_what_no_font_has_is_said_once(fonts, said):
    figure = Figure()
    figure.suptitle(f'{FIRST} dog 0.97')
    write_plainly(figure, ['cat', SECOND, f'{FIRST} dog'])
    assert len(said) == 1
    assert f'characters of {SECOND!r}, {f"{FIRST} dog"!r}; those' in said[0]
    assert 'apt-get install fonts-symbola' in said[0]
    assert draw(f'{FIRST} dog', SECOND).get_title() == '□ dog'
    assert len(said) == 1
    assert draw(THIRD).get_title() == '□'
    assert len(said) == 2


@pytest.mark.parametrize(
    ('character', 'package'),
    [('交', 'fonts-noto-cjk'), ('の', 'fonts-noto-cjk'), ('한', 'fonts-noto-cjk'), ('ก', 'fonts-noto-core')],
)
def test_packages_for_scripts(character, package):
    assert text._package(character) == package


def test_invisible_characters(fonts, said, monkeypatch):
    """Invisible characters that no font has leave no box, and are not reported."""
    assert draw('a\tb\x00c\ud800').get_title() == 'a b c '
    assert draw('two\nlines').get_title() == 'two\nlines'
    monkeypatch.setattr(text, '_covered', lambda path, characters: {c for c in characters if c.isascii()})
    text._find_fonts.cache_clear()
    assert draw('dog\u200d\ufe0f\u3000cat').get_title() == 'dog cat'
    assert said == []


def test_the_line_is_logged(fonts, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        draw(FIRST)
    finally:
        logger.removeHandler(caplog.handler)
    assert 'No installed font has all characters of' in caplog.text
