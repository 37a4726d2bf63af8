"""The stock layers of PVT and Swin with MMDetection's weights and keys, our computation, and optionally a cache."""
