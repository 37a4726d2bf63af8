"""Draw text in figures literally, in fonts that have its characters."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from matplotlib.artist import Artist
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from mmengine.logging import print_log

from mmgrc.runs.error import first_few

__all__ = ['write_plainly']

_BOX = '□'
# These fonts draw some characters as something else: placeholders, or the encodings of TeX's fonts.
_UNUSABLE = re.compile(r'last ?resort|adobe ?blank|^cm[a-z]+10$|^stix(nonunicode|size)', re.IGNORECASE)
_CJK = ('CJK ', 'HIRAGANA', 'KATAKANA', 'HANGUL', 'BOPOMOFO', 'FULLWIDTH', 'HALFWIDTH', 'IDEOGRAPHIC')

_CONTROL = ('Cc', 'Cs')

_reported: set[str] = set()


def write_plainly(artist: Artist, names: Sequence[str] = ()) -> None:
    """Draw all text of a figure or of an axis literally.

    Names come from users. A ``$`` in them is not a formula, and they may use any script. If the font lacks characters,
    installed fonts that have them are added. Characters that no font has become boxes, which is logged once.

    Args:
        artist: A figure or an axis, complete except for its layout.
        names: Names that other figures of the run will show, so that all are reported together.
    """
    texts = [text for text in artist.findobj(Text) if not _is_plain(text.get_text())]
    for text in artist.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    if texts:
        families = tuple(texts[0].get_fontfamily())
        others = (text.get_text() for text in texts)
        # A label is a name and a score.
        _report([*names, *(text for text in others if not any(name in text for name in names))], families)
    for text in texts:
        families = tuple(text.get_fontfamily())
        added, missing = _find_fonts(frozenset(text.get_text()), families)
        text.set_fontfamily([*families, *added])
        text.set_text(''.join(_replace(character, missing) for character in text.get_text()))


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _replace(character: str, missing: frozenset[str]) -> str:
    kind = unicodedata.category(character)
    if character == '\n':
        return character
    if kind in _CONTROL:
        return ' '
    if character not in missing:
        return character
    return ' ' if kind == 'Zs' else '' if _is_invisible(character) else _BOX


def _is_invisible(character: str) -> bool:
    """Whether it is a space, or only controls how its neighbours are drawn: joiners, directions, variants."""
    return unicodedata.category(character) in ('Cf', 'Zs', 'Zl', 'Zp') or '\ufe00' <= character <= '\ufe0f'


@lru_cache(maxsize=1024)
def _find_fonts(characters: frozenset[str], families: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The font families to add to the given ones, as few as possible, and the characters that no font has."""
    lacking = {c for c in characters if unicodedata.category(c) not in _CONTROL}
    for family in families:
        lacking -= _covered(fontManager.findfont(FontProperties(family=[family])), lacking)
    added = []
    # First the font with most of the characters, then the one with most of the rest, and so on.
    while needed := {c for c in lacking if not _is_invisible(c)}:
        found = {name: _covered(path, lacking) for name, path in _installed().items()}
        best = max(found, key=lambda name: len(found[name] & needed), default=None)
        if best is None or not found[best] & needed:
            break
        added.append(best)
        lacking -= found[best]
    return tuple(added), frozenset(lacking)


def _covered(path: str, characters: Iterable[str]) -> set[str]:
    try:
        known = get_font(path).get_charmap()
    except (OSError, RuntimeError, ValueError):
        # A font that was removed, or is damaged.
        return set()
    return {character for character in characters if ord(character) in known}


@lru_cache(maxsize=1)
def _installed() -> dict[str, str]:
    """A file of each family of fonts, plain ones without serifs first."""
    # Matplotlib lists fonts once and stores the list. Add those that were installed since.
    for path in set(findSystemFonts()) - {str(entry.fname) for entry in fontManager.ttflist}:
        try:
            fontManager.addfont(path)
        except Exception:
            # Formats that it cannot draw, such as colour bitmaps.
            continue
    usable = [entry for entry in fontManager.ttflist if not _UNUSABLE.search(entry.name)]
    usable.sort(
        key=lambda font: (
            font.style != 'normal',
            font.weight not in (400, 'normal', 'regular', 'book'),
            'Sans' not in font.name,
            'Mono' in font.name,
            font.name,
        )
    )
    files: dict[str, str] = {}
    for entry in usable:
        files.setdefault(entry.name, str(entry.fname))
    return files


def _report(texts: Sequence[str], families: tuple[str, ...]) -> None:
    """Log which texts cannot be drawn, each character once per process."""
    lacking = {}
    for text in texts:
        if not _is_plain(text):
            missing = _find_fonts(frozenset(text), families)[1]
            lacking[text] = {c for c in missing if not _is_invisible(c)} - _reported
    lacking = {text: missing for text, missing in lacking.items() if missing}
    if not lacking:
        return
    missing = set().union(*lacking.values())
    _reported.update(missing)
    shown = [repr(text) for text in lacking]
    print_log(
        f'No installed font has all characters of {first_few(shown)}; those missing are drawn as {_BOX}. On '
        f'Debian and Ubuntu: apt-get install {" ".join(sorted({_package(character) for character in missing}))}',
        logger='current',
        level=logging.WARNING,
    )


def _package(character: str) -> str:
    if unicodedata.name(character, '').startswith(_CJK):
        return 'fonts-noto-cjk'
    # Matplotlib cannot draw colour fonts.
    return 'fonts-symbola' if unicodedata.category(character) in ('So', 'Sk', 'Co', 'Cn') else 'fonts-noto-core'
