"""One file a command: its options, one call, one rendering."""
