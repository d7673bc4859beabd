"""Inside the kernel: build a model, optimize it, time it, check it. The only part with torch."""
