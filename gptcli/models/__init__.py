"""GPT-2 models: their shape, loading and saving."""
