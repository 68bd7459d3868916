"""Local SGD with shuffling (Yun, Rajput & Sra, ICLR 2022)."""
