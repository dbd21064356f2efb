"""``python -m scfm`` is the command ``scfm``."""

from __future__ import annotations

import sys

from scfm.cli import main

if __name__ == "__main__":
    sys.exit(main())
