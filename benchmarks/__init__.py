"""Benchmarks: scripts of this package measure speed, those of `studies` what is learned; `lib` is shared."""

import os

os.environ.setdefault("MMPREFIX_ALLOW", "benchmarks")  # their recipes name classes of this package
