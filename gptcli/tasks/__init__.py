"""What differs between tasks: how an example becomes inputs and a loss."""
