"""``python -m mmprefix`` is the same as ``mmprefix``."""

import sys

from mmprefix.cli import main

sys.exit(main())
