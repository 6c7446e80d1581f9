"""The verbs: what each command says, reads and writes."""
