"""What error mitigation takes away, what it adds in noise, and from how many executions on it is worth them."""
