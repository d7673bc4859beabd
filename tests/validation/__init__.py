"""Tests of ``scalebench_lib/validation``."""
