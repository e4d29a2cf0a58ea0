"""One module per format: what its fields mean, turned into pairs. No file is opened here."""
