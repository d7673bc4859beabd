"""Tests of ``scalebench_lib/analysis``."""
