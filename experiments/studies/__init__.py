"""The studies, one package each: its options, measurements, claims and figures."""
