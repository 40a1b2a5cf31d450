"""The front door: public API, tokenizer and template, queue, admission, membership. Imports no torch."""
