"""Fast paths: the same results sooner. Each file is exact, may be skipped by a reader, and can be switched off.

Each file opens with its claim, a measure, and how to switch it off (see ``switches``). Patches of a frozen language
model are applied by ``prepare`` alone, in the order that is listed there.
"""
