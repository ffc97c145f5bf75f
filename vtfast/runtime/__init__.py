"""The pruning runtime: everything that happens inside one forward of a patched model.

Read in this order: `visual_tokens` (what is known about the pictures of a chunk), `state` (the
bookkeeping of one forward), `padded` and `packed` (the two layouts), `kv_cache` and
`packed_kv_cache` (what a generation remembers), `attention`, `hooks` (what ties it to a model).
"""
