"""``python -m ambient_mri.cli``: the same as ``ambient-mri``, where the package is on the path and not installed."""

from __future__ import annotations

import sys

from ambient_mri.cli import main

if __name__ == "__main__":
    sys.exit(main())
