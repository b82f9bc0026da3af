"""The strategies, a file each: what a batch is made of, once scores and embeddings are there."""
