"""Makes demo/ importable, which is not installed; behind all else, so that the installed glmcpu stays the one."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
