"""Sources and sinks: files, the lake, the quarantine."""
