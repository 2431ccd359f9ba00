"""Edits for engines that know nothing of steer: one edit a file or checkpoint, for all requests.

Such an engine adds a vector to the residual stream after a layer, x <- x + e, at every position. So
what is exported is an additive edit, acts on the prompt as well (as with the scope "all"), and is
not behind a bundle's gate: it pushes on whatever the model reads.
"""
