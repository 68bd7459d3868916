"""Multi-order interactions and the representation bottleneck (Deng, Ren, Zhang & Zhang, ICLR 2022)."""
