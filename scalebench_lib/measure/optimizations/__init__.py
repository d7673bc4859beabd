"""The optimizations: functions of a `Target` that return an `OptimizedModel` of it.

`scalebench_lib.optimizations` declares them, and imports their modules when they are applied.
They raise `MeasurementError` where they do not apply or did not take effect. Int8 in torch itself
is left out: what torch has is on its way out.
"""
