"""``python -m mux.cli``: the same as ``mux``, also where another package took the command's name."""

import sys

from mux.cli import main

sys.exit(main())
