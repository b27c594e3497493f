"""Which estimator of a hypergradient suits a problem."""
