"""The page about runs: what is read, what is said, and how it is drawn. No statistics and no model live here."""
