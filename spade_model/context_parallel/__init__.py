"""One sequence over several ranks: halos of attention, passed states, merged cross-attention.

Every rank of a group holds a part of each long sequence and all weights. Nothing else of the
network changes: the embeddings, norms, projections and feed-forward layers see tokens one by one.
See `spade_model.context_parallel.part` for how to use it.
"""
