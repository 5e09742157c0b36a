"""Commands of ``mmprefix users``."""
