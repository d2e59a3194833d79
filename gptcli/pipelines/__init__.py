"""One file a verb: composes the rooms below and returns a result object; never prints."""
