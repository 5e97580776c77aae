"""From a program's description to numbers: specification, executor, and the operator that torch sees."""
