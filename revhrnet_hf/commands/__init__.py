"""Commands, one module each: parse the command line, call the package, print."""
