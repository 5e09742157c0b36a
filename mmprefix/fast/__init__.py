"""Fast paths: equal results in less time. A reader may skip this package, and every path can be switched off.

Each file opens with its claim, how it is measured, and how to switch it off (see ``switches``). Patches of a frozen
language model are applied by ``prepare`` alone, in the order listed there.
"""
