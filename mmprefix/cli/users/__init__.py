"""Commands of ``mmprefix users``, and the verb that distils prefixes of what users wrote."""
