"""What the benchmarks, the command line and the tests share: models to measure, and fair timing."""
