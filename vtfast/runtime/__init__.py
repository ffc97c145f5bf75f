"""The pruning runtime: everything that happens inside one forward of a patched model.

Read in this order: `visual` (what is known about the pictures of a chunk), `forward`
(the bookkeeping of one forward), `layouts` (padded and packed), `cache` and `ragged_cache` (what a
generation remembers), `attention`, `session` (the hooks that tie it to a model).
"""
