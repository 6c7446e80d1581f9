"""The verbs: messages, inputs and outputs of each command."""
