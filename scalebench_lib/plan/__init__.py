"""From a sweep's points to the instances to run, and the proof by running them. Loads no torch."""
