"""Security of the service: who may ask, what a browser may do with an answer, which addresses are fetched."""
