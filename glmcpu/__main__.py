"""`python -m glmcpu`: the command line, also where no `glmcpu` script is on the path."""

import sys

from glmcpu.cli import main

if __name__ == "__main__":
    sys.exit(main())
