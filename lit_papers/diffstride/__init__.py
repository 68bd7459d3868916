"""Learning strides in convolutional networks (DiffStride; Riad, Teboul, Grangier & Zeghidour, ICLR 2022)."""
