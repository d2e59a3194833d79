"""What is known of data before anything is trained on it: measured, and judged as findings."""
