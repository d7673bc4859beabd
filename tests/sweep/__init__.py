"""Tests of ``scalebench_lib/sweep``."""
