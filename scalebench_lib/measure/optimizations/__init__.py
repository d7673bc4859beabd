"""The optimizations: functions of a `Target` that return an `OptimizedModel` of it.

`scalebench_lib.optimizations` declares them, and imports their modules when they are applied.
"""
