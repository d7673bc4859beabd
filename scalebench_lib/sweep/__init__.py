"""Around the kernels: which trials are left, in which blocks they take turns, and how long."""
