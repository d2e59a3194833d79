"""Pages that show results: each one file that needs no other."""
