"""The environment: which versions work, and what works on a machine. Importing it needs nothing of MMDetection."""
