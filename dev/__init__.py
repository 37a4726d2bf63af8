"""Scripts for developers of the project. No wheel contains them."""
