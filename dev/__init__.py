"""What only developers of the project run. No wheel carries it."""
