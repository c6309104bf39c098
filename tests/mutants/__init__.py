"""Mutants of the project's own kernels: one synchronising instruction removed in each."""
