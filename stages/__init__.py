"""What the pipeline does to data: shard, replay, label, train, evaluate. No Ray here."""
