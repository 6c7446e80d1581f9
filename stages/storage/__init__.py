"""Files of a workspace: stores, receipts, manifests, locks and local copies of shards."""
