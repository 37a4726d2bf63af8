"""The environment: the versions that work. Importing it does not need MMDetection."""
