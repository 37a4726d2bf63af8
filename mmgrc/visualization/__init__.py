"""Pictures of detections and of runs."""
