"""Experiments with the bridge; ``python -m experiments`` lists them. They run from the checkout."""
