"""Around the kernels: which visits a sweep needs, running them, and how long that takes."""
