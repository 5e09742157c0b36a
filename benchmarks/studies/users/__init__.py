"""Studies of users: prefixes of their own, ways to adapt to them, cartridges of their texts."""
