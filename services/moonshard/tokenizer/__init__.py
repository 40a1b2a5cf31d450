"""A checkpoint's vocabulary: the router speaks it, the attention worker's grammars are written in its bytes."""

from moonshard.tokenizer.vocabulary import StreamDecoder, Tokenizer, load_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
