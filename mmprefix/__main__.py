"""``python -m mmprefix`` is the same as ``mmprefix``."""

import sys

from mmprefix.cli.main import main

sys.exit(main())
