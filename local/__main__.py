"""`python -m local` is `./payments` without the bootstrap."""

import sys

from local.main import main

sys.exit(main(sys.argv[1:]))
