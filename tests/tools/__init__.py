"""Scripts that are no tests: pictures for the README, and stress."""
