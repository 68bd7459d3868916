"""Data modules: embedded, local or downloaded data, one file per family."""
