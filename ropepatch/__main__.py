"""`python -m ropepatch`, for launchers such as torchrun."""

import sys

from ropepatch.cli import main

sys.exit(main())
