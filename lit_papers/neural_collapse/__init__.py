"""Neural collapse under MSE loss (Han, Papyan & Donoho, ICLR 2022)."""
