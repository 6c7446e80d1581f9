"""How parts are made: work, workers, retries and Ray. It knows no command."""
