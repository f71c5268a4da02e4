"""What leaves this machine: model cards, tables of models, pushes to the Hub."""
