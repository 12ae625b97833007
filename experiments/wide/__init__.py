"""A hidden kicked Ising model on all qubits of a device, learnt from its magnetisations."""
