"""What all tests share: helper modules beside the tests can be imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in sorted(Path(__file__).parent.rglob("*")) if p.is_dir() and p.name != "__pycache__"]
