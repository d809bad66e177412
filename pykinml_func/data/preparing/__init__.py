"""Making a prepared set: pieces read, joined, and AEVs computed, each of which a killed process had not done."""
