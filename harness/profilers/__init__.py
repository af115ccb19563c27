"""What a forward pass costs: operations counted without weights, time measured on this machine."""
