"""From files to the batch for step n."""
