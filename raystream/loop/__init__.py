"""What happens around a query: images to try it on, a trainer, and what the chosen labels are worth.

`demo` is the whole round on real images: train on a few labels, ask which rows to label next, add their labels,
train again, and compare with rows drawn at random.
"""
