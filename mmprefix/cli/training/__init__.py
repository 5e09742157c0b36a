"""The verbs that run a recipe: fit, validate, test, predict, encode."""
