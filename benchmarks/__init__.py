"""Benchmarks: scripts of this package measure speed, those of `studies` what is learned; `lib` is shared."""
