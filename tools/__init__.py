"""Everything that wires the parts together: tune, verify, bench, show."""
