"""Code in C++ that is compiled for this machine, for what torch's operators are slow at."""
