"""One profile per Beam runner."""
