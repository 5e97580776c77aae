"""Fused models as files, which `resfuse.runtime` runs without torch."""
