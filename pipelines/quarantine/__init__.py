"""What lies in an output's quarantine: counted, searched for patterns, shown and exported."""
