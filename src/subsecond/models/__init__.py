"""Model families as data, and the text side of a model: tokenizer, detokenizer, chat template."""
