"""A package, so that the ``tests`` which some installed package brings does not come before it."""
