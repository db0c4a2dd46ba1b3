"""Experiments and pictures: stored results, sweeps, figures, the notebook runner."""
