"""The command line. A file a command; what a command needs beyond the terminal is imported when it runs."""
