"""The method of the paper (arXiv 2411.15217). Knows tensors only: no path, URL, JSON or environment."""
