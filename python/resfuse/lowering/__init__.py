"""From torch modules to programs: tracing, matching, partition into fused and native steps."""
