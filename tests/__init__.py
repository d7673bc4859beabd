"""One file a module; `madeup` has records of machines that we do not have."""
