"""Reports of runs: the verb that draws one again, and what a fit or a test ends with."""
