"""Training of the bundled model pair: a small Llama target and a smaller draft.

    corpus      text files -> documents, chat samples
    vocabulary  documents -> tokenizer.json and its chat template
    packing     documents + tokenizer -> flat uint16 files; windows drawn from them by (seed, step)
    model       the network in plain torch, with Llama's parameter names
    optimizer   Muon for the layer matrices, AdamW for the rest, one schedule by tokens
    checkpoint  everything a run needs to go on, written atomically
    training    the loop
    distill     the draft learns the target's distribution
    export      the layout that `transformers` and octavo load
    card        the model card's figures, from the evaluation's
    evaluation  losses, exact-match on the rule-made forms, agreement of the pair, samples

The entry is `tools/train_bundled.py`.
"""
