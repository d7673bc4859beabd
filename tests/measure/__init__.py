"""Tests of ``scalebench_lib/measure``."""
