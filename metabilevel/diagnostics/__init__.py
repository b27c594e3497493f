"""What happens inside a method's adaptation: gradients along the inner path, memory, features, the tangent view.

Every diagnostic is a function of a method, its x and its tasks, and gives a `Diagnosis`.
"""
