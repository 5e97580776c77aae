"""What a module computes, and what that assumed of its Python state."""
