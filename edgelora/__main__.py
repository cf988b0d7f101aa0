"""`python -m edgelora`."""

import sys

from edgelora.cli import main
from edgelora.interruption import hand_over

hand_over()
sys.exit(main())
