"""The loop on one machine: a real Label Studio, digits to label, an annotator who knows the answers."""
