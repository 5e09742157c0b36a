"""Studies of quality: results of recipes on real data, over several seeds."""
