"""Are the numbers right? Experiments for ``notebooks/validation.ipynb``, each with a verdict."""
