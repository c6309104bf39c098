"""``python -m pykernels``."""

import sys

from pykernels.cli import main

sys.exit(main())
