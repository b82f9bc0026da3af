"""Real images to try raystream on, and what its batches are worth on them."""
