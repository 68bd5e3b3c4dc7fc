"""What commands hand out besides their lines in a terminal: JSON of a documented form, and pages with plots."""
