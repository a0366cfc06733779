"""`python -m local` is `./payments` without the bootstrap."""

import sys

from local.cli import main

sys.exit(main(sys.argv[1:]))
