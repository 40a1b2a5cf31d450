"""The demo checkpoint: seeded random weights in the published format, with a tokenizer and template of our own."""
