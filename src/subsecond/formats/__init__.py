"""File formats: bytes on disk to named tensors and metadata, and nothing about what they mean to a model."""
