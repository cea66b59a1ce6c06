"""What a detection means: its object and its history."""
