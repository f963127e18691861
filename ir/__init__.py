"""The IR: nodes, op and monoid tables, verification, text, interpretation, rules and sketches."""
