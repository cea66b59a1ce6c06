"""The shells that carry the field's names."""
