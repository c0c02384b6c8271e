"""Models to optimize: a trained one with its data, recipes in plain torch, and a fetcher of public ones.

Nothing here is installed with the package; run it from the root of the repository.
"""
