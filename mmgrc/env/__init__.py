"""The environment: the versions that work, and mmcv's ops where they are not compiled. It does not need MMDetection."""
