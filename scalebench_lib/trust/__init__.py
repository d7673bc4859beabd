"""Small experiments that show how far the numbers can be trusted; `notebooks/trust.ipynb` tells."""
