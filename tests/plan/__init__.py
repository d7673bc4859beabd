"""Tests of ``scalebench_lib/plan``."""
