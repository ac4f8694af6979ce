"""``python -m atrl.inspect``: one answer, and which of its tokens credit schemes would give the credit to."""
