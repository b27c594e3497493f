"""Is this hypergradient right, and if not, why: directions held against central differences of the solved problem."""
