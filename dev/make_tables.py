"""Count the parameters of each config, and update the metafiles and the tables of models in README and docs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dev.model_index import read_models, update_metafiles, write_tables
from mmgrc.runs.error import InputError


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--root', metavar='DIR', type=Path, default=Path('.'), help='the repository')
    parser.add_argument(
        '--tables-only', action='store_true', help='do not update the metafiles, which builds every model'
    )
    args = parser.parse_args()
    try:
        changed = [] if args.tables_only else update_metafiles(args.root)
        pages = [path for path in (args.root / 'README.md', *sorted(args.root.glob('docs/**/*.md'))) if path.is_file()]
        changed += write_tables(pages, read_models(args.root))
    except (InputError, ValueError) as error:
        return f'make_tables: {error}'
    print('\n'.join(f'{path} is written' for path in changed) or 'all is up to date')
    return None


if __name__ == '__main__':
    sys.exit(main())
