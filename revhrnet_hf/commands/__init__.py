"""The console commands, one module each: read the command line, call the package, print."""
