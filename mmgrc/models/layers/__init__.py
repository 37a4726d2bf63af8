"""The stock layers of PVT and Swin, adopted: MMDetection's weights and keys, our computation, a cache where one is."""
