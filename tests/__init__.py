"""One file a module; `factories` has records of machines that we do not have."""
