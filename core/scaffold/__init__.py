"""New plugin projects from the templates: names, questions, rendering, and the draft of a model from its files."""
