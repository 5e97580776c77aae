"""Training with fused kernels: convolutions and batch norm + sum + ReLU, forward and backward."""
