"""Sphinx's roles and links in docstrings, shown as Markdown would: the docstrings keep the style of MMDetection's."""

import re

_ROLE = re.compile(r':(?:class|meth|func|mod|data|attr):<code>(~?)([\w.]+)</code>')
_LINK = re.compile(r'<code>([^<]*?)\s*&lt;(https?://[^&]+)&gt;</code>_')


def on_page_content(html: str, **_) -> str:
    """Rewrite a page; `~` leaves the last part of a name, as in Sphinx."""
    html = _ROLE.sub(lambda match: f'<code>{match[2].rsplit(".", 1)[-1] if match[1] else match[2]}</code>', html)
    return _LINK.sub(r'<a href="\2">\1</a>', html)
